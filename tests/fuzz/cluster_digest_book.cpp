// libFuzzer target: any bytes, or a good file with changes, as the sidecar file that remembers
// digests. Either nothing is known or exactly what lies there, within 10 ms and without a single
// allocation above twice the file and 1 MB. Seeds: corpus/cluster_digest_book/
// (make_cluster_corpus.py); their form is input_of().
#include <fcntl.h>

#include <cstddef>
#include <cstdint>

#include "base/digest.h"
#include "cluster/weights/digest_book.h"
#include "small_slice.h"

namespace {

using moesaic::fuzz::violated;
using namespace moesaic::cluster;
using moesaic::cluster::fuzz::Bytes;

constexpr std::size_t kDigestBytes = 32;
constexpr std::size_t kUnitBytes = 40;

// Whatever is opened is the input's file.
class OneFile final : public FileOps {
 public:
  explicit OneFile(std::string path) : path_(std::move(path)) {}
  int open(const char*, int flags, unsigned mode) override {
    return FileOps::open(path_.c_str(), flags, mode);
  }

 private:
  std::string path_;
};

FileStates states() {
  FileState first;
  first.inode = 3;
  first.size = 100;
  FileState second = first;
  second.inode = 4;
  return {first, second};
}

Bytes good_file() {
  const fuzz::SetUpFolder folder;
  FileOps ops;
  DigestBook book(folder.path(), ops, [](const std::string&, const std::string&) {});
  UnitDigests digests;
  for (std::uint32_t i = 0; i < 4; ++i) digests[{i / 2, i % 2}] = fuzz::digest_of(i);
  book.add(states(), digests);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.path().extension() == ".digests") return fuzz::read_file(entry.path().string());
  }
  violated("no book was written");
}

void repair(Bytes& file) {
  if (file.size() < kDigestBytes) return;
  const std::size_t n = file.size() - kDigestBytes;
  const auto right = moesaic::sha256(file.data(), n);
  std::copy(right.begin(), right.end(), file.begin() + static_cast<std::ptrdiff_t>(n));
}

// Each is there; the first of two for one unit counts.
void check(const UnitDigests& known, const Bytes& file) {
  const std::size_t n_bytes = file.size() - kDigestBytes;
  if (known.size() * kUnitBytes > n_bytes) violated("more digests than there is room for");
  for (const auto& [unit, digest] : known) {
    bool found = false;
    for (std::size_t back = kUnitBytes; back <= n_bytes && !found; back += kUnitBytes) {
      const std::uint8_t* at = &file[n_bytes - back];
      found = std::memcmp(at, &unit.tensor, 4) == 0 && std::memcmp(at + 4, &unit.expert, 4) == 0 &&
              std::memcmp(at + 8, digest.data(), kDigestBytes) == 0;
    }
    if (!found) violated("a digest that does not lie there");
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moesaic::fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Bytes good = good_file();
  static const moesaic::fuzz::MemoryFile memory;
  static OneFile ops(memory.path());
  if (size == 0) return 0;
  fuzz::Input input = fuzz::input_of({data, size}, good);
  if (input.repair) repair(input.file);
  memory.fill(input.file);
  const moesaic::fuzz::Stopwatch stopwatch;
  DigestBook book("/nowhere", ops, [](const std::string&, const std::string&) {});
  const UnitDigests known = book.find(states());
  if (!known.empty()) check(known, input.file);
  if (input.file == good && known.size() != 4) violated("a good book is not believed");
  moesaic::fuzz::check_allocations(input.file.size());
  return 0;
}
