// Counts every allocation of the test program by operator new.
#pragma once

#include <cstdint>

namespace moesaic::backend::test {

std::int64_t n_allocations();  // since the program began, by all threads

}  // namespace moesaic::backend::test
