// Whether other users may put their files in the place of ours: ssh's StrictModes. For folders of
// keys and of weights that are used unread.
#pragma once

#include <string>

namespace moesaic {

// Why others may replace what lies in `folder`, and what to do, as "others may write to /x (mode
// 777): ..."; empty when they cannot, or when the folder cannot be examined. Others may when the
// folder or one above it (links followed) may be written to by all, or by a group that is neither
// root's nor this process's own, and has no sticky bit.
std::string replaceable_by_others(const std::string& folder);

}  // namespace moesaic
