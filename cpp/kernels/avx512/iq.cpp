// The IQ super-block types' rows of the table: the skeletons of x86/ with its unpackings.
#include "kernels/avx512/isa.h"
#include "kernels/x86/few_iq1.h"
#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::avx512 {

void fill_iq(Table& t) {
  RaisedPoints<Ints>::fill();
  add_super_type<Ints, FewIQ1S<Ints, FewParts>>(t, "avx512/IQ1_S");
  add_super_type<Ints, FewIQ1M<Ints, FewParts>>(t, "avx512/IQ1_M");
  add_super_type<Ints, IQ2XXS<Ints>>(t, "avx512/IQ2_XXS");
  add_super_type<Ints, IQ2XS<Ints>>(t, "avx512/IQ2_XS");
  add_super_type<Ints, IQ2S<Ints>>(t, "avx512/IQ2_S");
  add_super_type<Ints, IQ3XXS<Ints>>(t, "avx512/IQ3_XXS");
  add_super_type<Ints, IQ3S<Ints>>(t, "avx512/IQ3_S");
  add_super_type<Ints, IQ4XS<Ints>>(t, "avx512/IQ4_XS");
}

}  // namespace moesaic::kernels::avx512
