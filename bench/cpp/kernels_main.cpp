// bench_kernels [--type Q4_K] [--isa avx2] [--seconds 0.05] [--k 2048] [--only
// matmul|one_column|attention]: each kernel against the machine's measured ceilings, one thread.
#include <cstdlib>
#include <cstring>

#include "kernels_bench.h"

int main(int argc, char** argv) {
  using namespace moesaic::bench;
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const std::string value = argv[i + 1];
    if (name == "--type") options.type = value;
    if (name == "--isa") options.isa = value;
    if (name == "--seconds") options.seconds = std::atof(value.c_str());
    if (name == "--k") options.k = std::atoll(value.c_str());
    if (name == "--only") {
      options.matmul = value == "matmul" || value == "one_column";
      options.many_columns = value == "matmul";
      options.attention = value == "attention";
    }
  }
  const Ceilings ceilings = measure_ceilings();
  std::printf(
      "{\"bench\": \"ceilings\", \"read_gb_per_s\": %.1f, \"cache_gb_per_s\": %.1f, "
      "\"int8_gop_per_s\": %.0f, \"f32_gflop_per_s\": %.0f}\n",
      ceilings.read_gb_per_s, ceilings.cache_gb_per_s, ceilings.int8_gop_per_s,
      ceilings.f32_gflop_per_s);
  if (options.matmul) bench_matmul(options, ceilings);
  if (options.attention) bench_attention(options, ceilings);
  return 0;
}
