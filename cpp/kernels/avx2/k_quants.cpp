// See kernels/x86/part_k_quants.h.
#include "kernels/avx2/isa.h"
#include "kernels/x86/part_k_quants.h"
