// See kernels/x86/part_small.h.
#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/part_small.h"
