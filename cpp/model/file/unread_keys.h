// What an architecture's keys say that its family did not ask for. Not for keys that a family
// reads: arch/.
#pragma once

#include "model/config.h"
#include "model/file/keys.h"

namespace moesaic::model {

// Asked after a family has read its keys. Throws FormatError naming a key that is left, its value
// and what it changes, unless it is known to change nothing. Without this the file would load and
// give other numbers than it should.
void refuse_unread_keys(const Keys& keys, const Config& config);

}  // namespace moesaic::model
