// The IQ super-block types' rows of the table: the skeletons of x86/ with the unpackings of
// lattice.h and x86/few_iq1.h.
#include "kernels/avx2/lattice.h"
#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::avx2 {

void fill_iq(Table& t) {
  RaisedPoints<Ints>::fill();
  PointPairs::fill();
  add_super_type<Ints, FewIQ1S<Ints, FewParts>>(t, "avx2/IQ1_S");
  add_super_type<Ints, FewIQ1M<Ints, FewParts>>(t, "avx2/IQ1_M");
  add_super_type<Ints, FewIQ2XXS>(t, "avx2/IQ2_XXS");
  add_super_type<Ints, FewIQ2XS>(t, "avx2/IQ2_XS");
  add_super_type<Ints, FewIQ2S>(t, "avx2/IQ2_S");
  add_super_type<Ints, FewIQ3XXS>(t, "avx2/IQ3_XXS");
  add_super_type<Ints, FewIQ3S>(t, "avx2/IQ3_S");
  add_super_type<Ints, IQ4XS<Ints>>(t, "avx2/IQ4_XS");
}

}  // namespace moesaic::kernels::avx2
