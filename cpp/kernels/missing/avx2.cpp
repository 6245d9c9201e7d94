// Stands for the avx2 table in builds without it.
#include "kernels/tables.h"

namespace moesaic::kernels::avx2 {

const Table* table() { return nullptr; }

}  // namespace moesaic::kernels::avx2
