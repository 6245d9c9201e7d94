// See local_files.h.
#include "cluster/weights/local_files.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "base/errors.h"

namespace moesaic::cluster {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 8;
constexpr std::size_t kMaxEntries = 100000;

class Search {
 public:
  explicit Search(const std::string& name) : name_(name) {}

  void look_into(const fs::path& folder, int depth) {
    std::error_code error;
    const fs::path real = fs::canonical(folder, error);
    if (error || !seen_.insert(real).second) return;  // a link that leads back
    std::vector<fs::path> folders;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      if (++n_entries_ > kMaxEntries) return;
      std::error_code gone;
      if (entry->is_directory(gone)) {
        folders.push_back(entry->path());
      } else if (entry->path().filename() == name_ && entry->is_regular_file(gone)) {
        found.push_back(entry->path().string());
      }
    }
    if (depth == kMaxDepth) return;
    for (const fs::path& inner : folders) look_into(inner, depth + 1);
  }

  std::vector<std::string> found;

 private:
  const std::string& name_;
  std::set<fs::path> seen_;
  std::size_t n_entries_ = 0;
};

}  // namespace

void check_file_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.size() > 255 ||
      name.find('/') != std::string::npos || name.find('\\') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    fail<ArgumentError>("[weights] a model's name of ", name.size(),
                        " bytes that is no plain file name, need one like \"model.gguf\" without "
                        "any folder");
  }
}

std::vector<std::string> files_named(const std::string& folder, const std::string& name) {
  if (folder.empty()) return {};
  Search search(name);
  search.look_into(folder, 0);
  std::sort(search.found.begin(), search.found.end());
  return search.found;
}

}  // namespace moesaic::cluster
