// The K-quants' and ternary types' rows of the table: the skeletons of x86/ with the unpackings of
// k_scales.h, folded_panels.h and ternary.h.
#include "kernels/avx512vnni/folded_panels.h"
#include "kernels/avx512vnni/k_scales.h"
#include "kernels/avx512vnni/ternary.h"
#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::avx512vnni {

void fill_k_quants(Table& t) {
  add_super_type<Ints, PanelQ2K>(t, "avx512vnni/Q2_K");
  add_super_type<Ints, PanelQ3K>(t, "avx512vnni/Q3_K");
  add_super_type<Ints, FastKScaled<Q4K<Ints>>>(t, "avx512vnni/Q4_K");
  add_super_type<Ints, FastKScaled<Q5K<Ints>>>(t, "avx512vnni/Q5_K");
  add_super_type<Ints, Q6K<Ints>>(t, "avx512vnni/Q6_K");
  add_super_type<Ints, FastTQ1>(t, "avx512vnni/TQ1_0");
  add_super_type<Ints, TQ2<Ints>>(t, "avx512vnni/TQ2_0");
}

}  // namespace moesaic::kernels::avx512vnni
