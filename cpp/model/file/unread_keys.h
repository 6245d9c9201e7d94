// What an architecture's keys say that its family did not ask for. Not for keys that a family
// reads: arch/.
#pragma once

#include <string_view>

#include "model/config.h"
#include "model/file/keys.h"

namespace moesaic::model {

// Asked after a family has read its keys. Throws FormatError naming a key that is left, its value
// and what it changes, unless it is known to change nothing. Without this the file would load and
// give other numbers than it should.
void refuse_unread_keys(const Keys& keys, const Config& config);
// Whether it is known what the key changes in a model like this one, so that a value which changes
// nothing may be asked for in its place.
bool is_known_setting(const Keys& keys, const Config& config, std::string_view name);

}  // namespace moesaic::model
