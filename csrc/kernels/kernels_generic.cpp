#define PULLBACK_ISA_NAME "generic"
#define PULLBACK_KERNELS kernels_generic
#define PULLBACK_VECTOR_BYTES 16
#include "table.inl"
