#define PULLBACK_ISA_NAME "avx2"
#define PULLBACK_KERNELS kernels_avx2
#define PULLBACK_VECTOR_BYTES 32
#define PULLBACK_X86 1
#include "table.inl"
