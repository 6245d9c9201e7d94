// See kernels/x86/part_small.h.
#include "kernels/avx512/isa.h"
#include "kernels/x86/part_small.h"
