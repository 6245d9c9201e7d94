// The IQ super-block types' rows of the table: the skeletons of x86/ with the unpackings of
// lattice.h, nibbles.h and x86/few_iq1.h.
#include "kernels/avx512vnni/lattice.h"
#include "kernels/avx512vnni/nibbles.h"
#include "kernels/x86/few_iq1.h"
#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::avx512vnni {

void fill_iq(Table& t) {
  RaisedPoints<Ints>::fill();
  add_super_type<Ints, FewIQ1S<Ints, FewParts>>(t, "avx512vnni/IQ1_S");
  add_super_type<Ints, FewIQ1M<Ints, FewParts>>(t, "avx512vnni/IQ1_M");
  add_super_type<Ints, FastIQ2XXS>(t, "avx512vnni/IQ2_XXS");
  add_super_type<Ints, FastIQ2XS>(t, "avx512vnni/IQ2_XS");
  add_super_type<Ints, FastIQ2S>(t, "avx512vnni/IQ2_S");
  add_super_type<Ints, FastIQ3XXS>(t, "avx512vnni/IQ3_XXS");
  add_super_type<Ints, FastIQ3S>(t, "avx512vnni/IQ3_S");
  add_super_type<Ints, FastIQ4XS>(t, "avx512vnni/IQ4_XS");
}

}  // namespace moesaic::kernels::avx512vnni
