#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace pullback {
namespace {

#ifdef PULLBACK_X86
// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Narrowest first.
std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> sets = {&kernels_generic};
#ifdef PULLBACK_X86
  if (has_avx2()) sets.push_back(&kernels_avx2);
  if (has_avx512()) sets.push_back(&kernels_avx512);
#endif
  return sets;
}

const Kernels* find(const std::string& name, const std::string& origin) {
  std::string names;
  for (const Kernels* set : supported()) {
    if (name == set->name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  const bool known = name == "generic" || name == "avx2" || name == "avx512";
  throw std::runtime_error(origin + "=" + name +
                           (known ? ": this CPU or build does not have it" : ": no such instruction set") +
                           "; available: " + names);
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* set = chosen.load(std::memory_order_acquire);
  if (!set) {
    const char* name = std::getenv("PULLBACK_ISA");
    set = name && *name ? find(name, "PULLBACK_ISA") : supported().back();
    chosen.store(set, std::memory_order_release);
  }
  return *set;
}

void set_isa(const std::string& name) { chosen.store(find(name, "set_isa"), std::memory_order_release); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* set : supported()) names.push_back(set->name);
  return names;
}

std::vector<std::pair<std::string, bool>> cpu_features() {
#ifdef PULLBACK_X86
#  define PULLBACK_FEATURE(name) {name, __builtin_cpu_supports(name) != 0}
  return {PULLBACK_FEATURE("sse4.2"),   PULLBACK_FEATURE("avx2"),       PULLBACK_FEATURE("fma"),
          PULLBACK_FEATURE("avx512f"),  PULLBACK_FEATURE("avx512bw"),   PULLBACK_FEATURE("avx512dq"),
          PULLBACK_FEATURE("avx512vl"), PULLBACK_FEATURE("avx512bf16"),
#  if !defined(__clang__) && __GNUC__ >= 11
          PULLBACK_FEATURE("amx-bf16")
#  endif
  };
#  undef PULLBACK_FEATURE
#else
  return {};
#endif
}

}  // namespace pullback
