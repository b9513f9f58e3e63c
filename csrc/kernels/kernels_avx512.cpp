#define PULLBACK_ISA_NAME "avx512"
#define PULLBACK_KERNELS kernels_avx512
#define PULLBACK_VECTOR_BYTES 64
#define PULLBACK_X86 1
// The compilers that know the tiles of AMX.
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#  define PULLBACK_TILES 1
#endif
#include "table.inl"
