// See kernels/x86/part_table.h.
#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/part_table.h"
