// Stands for the avx512 table in builds without it.
#include "kernels/tables.h"

namespace moesaic::kernels::avx512 {

const Table* table() { return nullptr; }

}  // namespace moesaic::kernels::avx512
