// The 32-block types' rows of a table; see part_k_quants.h.
#pragma once

#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE {

void fill_small(Table& t) {
  add_small_type<Ints, Q40<Ints>>(t, MOESAIC_ISA_NAME "/Q4_0");
  add_small_type<Ints, Q41<Ints>>(t, MOESAIC_ISA_NAME "/Q4_1");
  add_small_type<Ints, Q50<Ints>>(t, MOESAIC_ISA_NAME "/Q5_0");
  add_small_type<Ints, Q51<Ints>>(t, MOESAIC_ISA_NAME "/Q5_1");
  add_small_type<Ints, Q80<Ints>>(t, MOESAIC_ISA_NAME "/Q8_0");
  add_small_type<Ints, IQ4NL<Ints>>(t, MOESAIC_ISA_NAME "/IQ4_NL");
  add_small_type<Ints, MXFP4<Ints>>(t, MOESAIC_ISA_NAME "/MXFP4");
  add_small_type<Ints, NVFP4<Ints>>(t, MOESAIC_ISA_NAME "/NVFP4");
  add_small_type<Ints, Q10<Ints>>(t, MOESAIC_ISA_NAME "/Q1_0");
  add_small_type<Ints, Q20<Ints>>(t, MOESAIC_ISA_NAME "/Q2_0");
}

}  // namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE
