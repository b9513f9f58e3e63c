#define PULLBACK_ISA_NAME "avx512"
#define PULLBACK_KERNELS kernels_avx512
#define PULLBACK_VECTOR_BYTES 64
#define PULLBACK_X86 1
#include "table.inl"
