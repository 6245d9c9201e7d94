// See kernels/x86/part_iq.h.
#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/part_iq.h"
