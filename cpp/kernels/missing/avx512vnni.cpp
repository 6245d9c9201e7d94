// Stands for the avx512vnni table in builds without it.
#include "kernels/tables.h"

namespace moesaic::kernels::avx512vnni {

const Table* table() { return nullptr; }

}  // namespace moesaic::kernels::avx512vnni
