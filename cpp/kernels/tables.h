// The list of tables that are compiled in, for table.cpp alone.
#pragma once

#include "kernels/table.h"

namespace moesaic::kernels {

namespace generic {
const Table& table();
}
namespace avx2 {
const Table& table();
}
namespace avx512 {
const Table& table();
}
namespace avx512vnni {
const Table& table();
}

}  // namespace moesaic::kernels
