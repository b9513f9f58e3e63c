// bfloat16 in memory. Arithmetic is done in float32.
#pragma once

#include <cstdint>

namespace pullback {

struct bf16 {
  uint16_t bits;
};

}  // namespace pullback
