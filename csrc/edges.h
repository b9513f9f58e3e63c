// What is checked of edges, whatever form they have.
#pragma once

#include <string>

#include "view.h"

namespace pullback {

inline void require_below(const char* op, const char* what, const View& ids, int64_t n) {
  for (int64_t i = 0; i < ids.shape[0]; ++i) {
    const int64_t id = ids.as<int64_t>()[i];
    if (id < 0 || id >= n) require(false, std::string(op) + ": there is no " + what + " " + std::to_string(id));
  }
}

}  // namespace pullback
