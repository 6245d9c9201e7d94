// See kernels/x86/part_iq.h.
#include "kernels/avx512/isa.h"
#include "kernels/x86/part_iq.h"
