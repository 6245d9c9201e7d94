// Finds model files by name under a folder. A name comes from a peer: it is never a path, and what
// is found is nothing until its headers have given the identity that was asked for.
#pragma once

#include <string>
#include <vector>

namespace moesaic::cluster {

// Throws ArgumentError for what cannot be a plain file name: empty, "." or "..", with a separator
// or a zero byte, longer than 255 bytes.
void check_file_name(const std::string& name);

// The paths of all regular files of this name in the folder and below it, symbolic links followed,
// sorted. At most some levels and entries deep: a models folder, not a whole disk.
std::vector<std::string> files_named(const std::string& folder, const std::string& name);

}  // namespace moesaic::cluster
