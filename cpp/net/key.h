// The cluster key: who has it is a member. A file of one line, or of two while keys are being
// changed, each 64 hexadecimal digits: the first is dialled with, both are accepted. A change
// without a pause takes three steps, each on all nodes before the next: "old, new", "new, old",
// "new". What TLS gets is derived from it per dialler and direction, so that a node can never be
// answered by its own reflection (RFC 9257).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wire/messages.h"

namespace moesaic::net {

using Secret = std::array<std::uint8_t, 32>;

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
  ~ClusterKey();  // leaves no key behind in memory

  // Number of keys: 1, or 2 during a change. Epoch 0 is the one in use.
  int n_keys() const { return static_cast<int>(keys_.size()); }
  // What identifies key `epoch` on the wire without telling anything about it.
  std::string key_id(int epoch) const;
  std::optional<int> find(std::string_view key_id) const;

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

  std::vector<Secret> keys_;
};

wire::NodeId random_node_id();
std::string to_hex(const wire::NodeId& id);
bool equal_constant_time(const wire::Digest& a, const wire::Digest& b);

}  // namespace moesaic::net
