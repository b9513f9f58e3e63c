// Leaves as their kernel takes them: as many at a time as fit its registers.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace pullback {

// Calls f(vectors, places, how many) for a few of `count` leaves after the other, whose j-th has vector_of(j) and
// place_of(j).
template <class T, class Vector, class Place, class F>
void each_few_leaves(int64_t count, const Vector& vector_of, const Place& place_of, const F& f) {
  for (int64_t first = 0; first < count; first += leaves_at_once) {
    const T* vectors[leaves_at_once];
    T* places[leaves_at_once];
    const int64_t few = std::min<int64_t>(leaves_at_once, count - first);
    for (int64_t j = 0; j < few; ++j) {
      vectors[j] = vector_of(first + j);
      places[j] = place_of(first + j);
    }
    f(vectors, places, few);
  }
}

}  // namespace pullback
