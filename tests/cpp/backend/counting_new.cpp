// The replaced operators stand in a file of their own: seen together with the code that calls them,
// the compiler would inline one half of a pair and warn of a mismatch.
#include "backend/counting_new.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> g_n_allocations{0};

void* counted(std::size_t n_bytes) noexcept {
  g_n_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(n_bytes == 0 ? 1 : n_bytes);
}

}  // namespace

void* operator new(std::size_t n_bytes) {
  if (void* memory = counted(n_bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new[](std::size_t n_bytes) { return operator new(n_bytes); }
void* operator new(std::size_t n_bytes, const std::nothrow_t&) noexcept { return counted(n_bytes); }
void* operator new[](std::size_t n_bytes, const std::nothrow_t&) noexcept {
  return counted(n_bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace moesaic::backend::test {

std::int64_t n_allocations() { return g_n_allocations.load(std::memory_order_relaxed); }

}  // namespace moesaic::backend::test
