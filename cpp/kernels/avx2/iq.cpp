// See kernels/x86/part_iq.h.
#include "kernels/avx2/isa.h"
#include "kernels/x86/part_iq.h"
