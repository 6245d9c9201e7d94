// The IQ super-block types' rows of a table; see part_k_quants.h.
#pragma once

#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE {

void fill_iq(Table& t) {
  add_super_type<Ints, IQ1S<Ints>>(t, MOESAIC_ISA_NAME "/IQ1_S");
  add_super_type<Ints, IQ1M<Ints>>(t, MOESAIC_ISA_NAME "/IQ1_M");
  add_super_type<Ints, IQ2XXS<Ints>>(t, MOESAIC_ISA_NAME "/IQ2_XXS");
  add_super_type<Ints, IQ2XS<Ints>>(t, MOESAIC_ISA_NAME "/IQ2_XS");
  add_super_type<Ints, IQ2S<Ints>>(t, MOESAIC_ISA_NAME "/IQ2_S");
  add_super_type<Ints, IQ3XXS<Ints>>(t, MOESAIC_ISA_NAME "/IQ3_XXS");
  add_super_type<Ints, IQ3S<Ints>>(t, MOESAIC_ISA_NAME "/IQ3_S");
  add_super_type<Ints, IQ4XS<Ints>>(t, MOESAIC_ISA_NAME "/IQ4_XS");
}

}  // namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE
