// The 32-block types' rows of the table: the skeletons of x86/ with the unpackings of nibbles.h.
#include "kernels/avx512vnni/nibbles.h"
#include "kernels/x86/int_kernels.h"

namespace moesaic::kernels::avx512vnni {

void fill_small(Table& t) {
  add_small_type<Ints, Quads<Q40<Ints>>>(t, "avx512vnni/Q4_0");
  add_small_type<Ints, Quads<Q41<Ints>>>(t, "avx512vnni/Q4_1");
  add_small_type<Ints, Q50<Ints>>(t, "avx512vnni/Q5_0");
  add_small_type<Ints, Q51<Ints>>(t, "avx512vnni/Q5_1");
  add_small_type<Ints, Q80<Ints>>(t, "avx512vnni/Q8_0");
  add_small_type<Ints, Quads<IQ4NL<Ints>>>(t, "avx512vnni/IQ4_NL");
  add_small_type<Ints, Quads<MXFP4<Ints>>>(t, "avx512vnni/MXFP4");
  add_small_type<Ints, NVFP4<Ints>>(t, "avx512vnni/NVFP4");
  add_small_type<Ints, Q10<Ints>>(t, "avx512vnni/Q1_0");
  add_small_type<Ints, Q20<Ints>>(t, "avx512vnni/Q2_0");
}

}  // namespace moesaic::kernels::avx512vnni
