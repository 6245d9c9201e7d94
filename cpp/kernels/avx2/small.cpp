// See kernels/x86/part_small.h.
#include "kernels/avx2/isa.h"
#include "kernels/x86/part_small.h"
