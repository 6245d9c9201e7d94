// The cluster key: who has it is a member. A file of one line, or of two while keys are being
// changed, each 64 hexadecimal digits: the first is dialled with, both are accepted. A change
// without a pause takes three steps, each on all nodes before the next: "old, new", "new, old",
// "new". What TLS gets is derived from it per dialler and direction, so that a node can never be
// answered by its own reflection (RFC 9257).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "wire/messages.h"

namespace moesaic::net {

using Secret = std::array<std::uint8_t, 32>;

// Pages of their own that are left out of core dumps and, where the limit allows it, of swap.
// Throws std::bad_alloc.
void* allocate_undumped(std::size_t n_bytes);
void free_undumped(void* pages, std::size_t n_bytes) noexcept;  // wipes them first

template <typename T>
struct UndumpedAllocator {
  using value_type = T;
  UndumpedAllocator() = default;
  template <typename U>
  explicit UndumpedAllocator(const UndumpedAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(allocate_undumped(n * sizeof(T))); }
  void deallocate(T* at, std::size_t n) noexcept { free_undumped(at, n * sizeof(T)); }
  bool operator==(const UndumpedAllocator&) const { return true; }
};

class ClusterKey {
 public:
  // The key in use first, then at most one other. Throws ArgumentError for anything else; `source`
  // says there whose text it was.
  static ClusterKey parse(std::string_view text, const std::string& source = "");
  // Throws IoError when the file cannot be read or others may read it (mode other than 0600 or
  // 0400), and as parse() does.
  static ClusterKey read(const std::string& path);
  // Writes a new random key: a new file, mode 0600. Throws IoError when the path exists.
  static void generate(const std::string& path);
  static ClusterKey random();

  ClusterKey(const ClusterKey&) = default;
  ClusterKey(ClusterKey&&) = default;
  ClusterKey& operator=(const ClusterKey&) = default;
  ClusterKey& operator=(ClusterKey&&) = default;
  ~ClusterKey() = default;  // the allocator leaves no key behind

  // Number of keys: 1, or 2 during a change. Epoch 0 is the one in use.
  int n_keys() const { return static_cast<int>(keys_.size()); }
  // A short name of key `epoch` for people and logs, which tells nothing about it. Never sent.
  std::string key_id(int epoch) const;

  // What a dialler sends in clear to say which key it has and who it is: a fresh random number, and
  // both masked under it, so that two connections have nothing in common for those without the key.
  // (kIdentityBytes): nonce 16 | node id xor mask 16 | tag 16.
  static constexpr std::size_t kIdentityBytes = 48;
  std::vector<std::uint8_t> identity(int epoch, const wire::NodeId& dialler) const;
  struct Claim {
    int epoch = 0;
    wire::NodeId dialler{};
  };
  // Nothing when none of these keys has made it. A claim proves nothing: it may be a copy.
  std::optional<Claim> open_identity(std::span<const std::uint8_t> identity) const;

  // PSK for connections that `dialler` opens, with key `epoch`.
  Secret psk(int epoch, const wire::NodeId& dialler) const;
  // The listener's proof in Welcome: bound to both ends and to this TLS connection (its exporter
  // value).
  wire::Digest proof(int epoch, const wire::NodeId& dialler, const wire::NodeId& listener,
                     const Secret& exporter) const;
  // As the text of a key file.
  std::string text() const;

 private:
  ClusterKey() = default;
  const Secret& at(int epoch) const { return keys_.at(static_cast<std::size_t>(epoch)); }

  std::vector<Secret, UndumpedAllocator<Secret>> keys_;
};

wire::NodeId random_node_id();
std::string to_hex(const wire::NodeId& id);
bool equal_constant_time(const wire::Digest& a, const wire::Digest& b);

}  // namespace moesaic::net
