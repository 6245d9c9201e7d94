// The tables there can be, for table.cpp alone. A table that the build leaves out (MOESAIC_ISAS)
// comes from missing/ and is null.
#pragma once

#include "kernels/table.h"

namespace moesaic::kernels {

namespace generic {
const Table& table();
}
namespace avx2 {
const Table* table();
}
namespace avx512 {
const Table* table();
}
namespace avx512vnni {
const Table* table();
}

}  // namespace moesaic::kernels
