// The table without intrinsics: the definition of every number, and the fallback for any machine.
#include "kernels/common/fill_table.h"
#include "kernels/generic/matmul_int.h"
#include "kernels/generic/simd.h"
#include "kernels/tables.h"

namespace moesaic::kernels::generic {

const Table& table() {
  static const Table instance = [] {
    Table t{};
    fill_float_part<Simd>(t, {"generic", "generic/F32", "generic/F16", "generic/BF16"});
    fill_int_part(t);
    return t;
  }();
  return instance;
}

}  // namespace moesaic::kernels::generic
