// Keys of a file that a caller sets to other values when it is loaded. Not for what values mean:
// whoever reads a key checks it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "gguf/file.h"
#include "model/config.h"
#include "model/file/keys.h"

namespace moesaic::model {

struct Override {
  std::string name;  // with or without the architecture's prefix
  std::variant<bool, std::int64_t, double, std::string> value;
};
using Overrides = std::vector<Override>;

// The file with these values in its metadata, of the type that the key has in the file; new keys
// come last, as u32, i64, f32, bool or string. One value in place of an array is for all layers.
// The file itself when there are none. Throws ArgumentError for a name that comes twice and a value
// that the key's type cannot hold.
std::shared_ptr<const gguf::File> with_overrides(std::shared_ptr<const gguf::File> file,
                                                 const Overrides& overrides);
// Throws ArgumentError naming an override that no getter asked for and whose key is not known to
// change anything (unread_keys.h), and the nearest names that a getter did ask for.
void check_have_effect(const Keys& keys, const Config& config, const Overrides& overrides);

// "expert_used_count=4, rope.freq_base=1e+06": for messages and identities.
std::string text_of(const Overrides& overrides);

}  // namespace moesaic::model
