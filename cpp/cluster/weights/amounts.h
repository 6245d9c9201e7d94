// Amounts as people say them, for lines of the log; fields of --log-json have the numbers.
#pragma once

#include <cstdint>
#include <string>

namespace moesaic::cluster {

std::string human_bytes(double n_bytes);               // "1.6 GB": powers of 1000, as in the CLI
std::string counted(std::int64_t n, const char* one);  // "1 thread", "2 threads"

}  // namespace moesaic::cluster
