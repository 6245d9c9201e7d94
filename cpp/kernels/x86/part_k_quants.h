// The K-quants' and ternary types' rows of a table. Included once per ISA, which names its
// namespace (MOESAIC_ISA_NAMESPACE) and its vocabulary (Ints) first.
#pragma once

#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE {

void fill_k_quants(Table& t) {
  add_super_type<Ints, Q2K<Ints>>(t, MOESAIC_ISA_NAME "/Q2_K");
  add_super_type<Ints, Q3K<Ints>>(t, MOESAIC_ISA_NAME "/Q3_K");
  add_super_type<Ints, Q4K<Ints>>(t, MOESAIC_ISA_NAME "/Q4_K");
  add_super_type<Ints, Q5K<Ints>>(t, MOESAIC_ISA_NAME "/Q5_K");
  add_super_type<Ints, Q6K<Ints>>(t, MOESAIC_ISA_NAME "/Q6_K");
  add_super_type<Ints, TQ1<Ints>>(t, MOESAIC_ISA_NAME "/TQ1_0");
  add_super_type<Ints, TQ2<Ints>>(t, MOESAIC_ISA_NAME "/TQ2_0");
}

}  // namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE
