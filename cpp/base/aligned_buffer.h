// Anonymous memory for scratch and KV pages: 64-byte aligned, zero at first, physical pages taken
// only when touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moesaic {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t n_bytes);  // throws OutOfMemoryError when the system refuses
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  std::size_t size() const { return n_bytes_; }
  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }
  // Gives the physical pages inside [offset, offset + n_bytes) back to the system; they read as
  // zero afterwards.
  void release(std::size_t offset, std::size_t n_bytes);

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t n_bytes_ = 0;
};

// Memory this process could still take, in bytes: MemAvailable, cut by the cgroup's limit.
std::uint64_t available_memory_bytes();

}  // namespace moesaic
