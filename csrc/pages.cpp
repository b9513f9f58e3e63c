#include "ops.h"

#ifdef __linux__
#  include <sys/mman.h>
#endif

namespace pullback {

void prefer_huge_pages(const View& memory) {
  require_dense("prefer_huge_pages", "memory", memory, std::vector<int64_t>(memory.shape.size(), -1), memory.itemsize);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = uintptr_t{1} << 21;  // what a huge page is on x86-64 and on most of Arm
  const auto start = reinterpret_cast<uintptr_t>(memory.data);
  const uintptr_t end = start + static_cast<uintptr_t>(memory.size() * memory.itemsize);
  const uintptr_t first = (start + page - 1) / page * page, last = end / page * page;
  // A system that refuses leaves the pages as they are, which is slower and nothing worse.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace pullback
