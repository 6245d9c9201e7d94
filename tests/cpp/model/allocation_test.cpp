// Nothing is allocated per token: a decode step takes memory for its results alone. Counts calls of
// operator new in this program.
// GCC 12 at -O1 takes the pair of operators below, which both go through malloc and free, for a
// mismatch.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "model/tiny_model.h"

namespace {

std::atomic<long> allocations{0};

}  // namespace

void* operator new(std::size_t n_bytes) {
  ++allocations;
  if (void* memory = std::malloc(n_bytes == 0 ? 1 : n_bytes)) return memory;
  throw std::bad_alloc();
}
// std::stable_sort asks this way; what it gets is given back to the operator below.
void* operator new(std::size_t n_bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(n_bytes == 0 ? 1 : n_bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace moesaic::model {
namespace {

TEST(Allocation, ADecodeStepAllocatesItsResultsOnly) {
  for (const int threads : {1, 2}) {
    LoadOptions options = testing::small_options();
    options.threads = threads;
    const auto runner = testing::load(testing::tiny_deepseek2({.n_layers = 6}), options);
    SamplerSpec greedy;
    greedy.temperature = 0.0F;
    Step step;
    step.sequences.push_back(testing::rows(runner->open(), 0, {1}, Logits::kNone));
    step.sequences[0].sampler = &greedy;
    for (int i = 0; i < 40; ++i) {
      step.sequences[0].start = i;
      const long before = allocations.load();
      runner->run(step);
      const long taken = allocations.load() - before;
      // A new page every 16 tokens may grow the list of pages.
      if (i < 2) continue;
      EXPECT_LE(taken, i % 16 == 0 ? 6 : 4) << "step " << i;
    }
  }
}

}  // namespace
}  // namespace moesaic::model
