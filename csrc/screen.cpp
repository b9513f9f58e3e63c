#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {

void shadow_rows(const View& rows, const View& w16, const View& norms, const View& rests) {
  const char* op = "shadow_rows";
  require_rows(op, "rows", rows, {-1, -1}, 4);
  const int64_t n = rows.shape[0], d = rows.shape[1];
  require_dense(op, "w16", w16, {n, d}, 2);
  require_dense(op, "norms", norms, {n}, 4);
  require_dense(op, "rests", rests, {n}, 4);
  const auto kernel = kernels().shadow_rows;
  parallel_for(n, n * d, [&](int64_t begin, int64_t end, int) {
    kernel(rows.as<float>(), rows.strides[0], d, begin, end, w16.as<uint16_t>(), norms.as<float>(),
           rests.as<float>());
  });
}

}  // namespace pullback
