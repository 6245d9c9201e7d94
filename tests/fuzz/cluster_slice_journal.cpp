// libFuzzer target: any bytes, or a good file with changes, as the journal of a broken-off pull.
// What is believed of it fits the slice, and nothing is believed and doubted at once, within 10 ms
// and without a single allocation above twice the file and 1 MB. Seeds:
// corpus/cluster_slice_journal/ (make_cluster_corpus.py); their form is input_of().
#include <cstddef>
#include <cstdint>
#include <set>

#include "base/crc32c.h"
#include "base/digest.h"
#include "cluster/weights/slice_journal.h"
#include "small_slice.h"

namespace {

using moesaic::fuzz::violated;
using namespace moesaic::cluster;
using moesaic::cluster::fuzz::Bytes;

constexpr std::size_t kHeadBytes = 88;
constexpr std::size_t kRecordBytes = 56;

class FixedBoot final : public FileOps {
 public:
  std::string boot_id() override { return "boot"; }
};

const fuzz::SmallSlice& small() {
  static const fuzz::SmallSlice slice;
  return slice;
}

FileState part() {
  FileState state;
  state.inode = 7;
  state.born_ns = 9;
  state.size = small().layout.file_bytes;
  return state;
}

// Units, the beginning of one, a mark and a seal.
Bytes good_file(FileOps& ops) {
  const fuzz::SetUpFolder folder;
  const std::string path = folder.path() + "/journal";
  SliceJournal journal(small().layout, path, ops);
  moesaic::Sha256State beginning;
  beginning.n_bytes = 64;
  journal.start(part(), {{0, fuzz::digest_of(0)}}, {{1, beginning}});
  journal.add_unit(2, fuzz::digest_of(2));
  journal.mark(journal.n_notes());
  journal.drop_beginning(1);
  journal.add_unit(1, fuzz::digest_of(1));
  journal.seal(part());
  journal.close();
  return fuzz::read_file(path);
}

void repair(Bytes& file) {
  for (std::size_t at = kHeadBytes; at + kRecordBytes <= file.size(); at += kRecordBytes) {
    const std::uint32_t crc = moesaic::crc32c(0, &file[at], kRecordBytes - 4);
    std::memcpy(&file[at + kRecordBytes - 4], &crc, sizeof crc);
  }
}

void check(const SliceJournal::Content& content) {
  const SliceLayout& layout = small().layout;
  std::set<std::size_t> seen;
  for (const auto* units : {&content.believed, &content.doubted}) {
    for (const auto& [unit, digest] : *units) {
      if (unit >= layout.units.size()) violated("a unit that is not there");
      if (!seen.insert(unit).second) violated("a unit twice");
    }
  }
  for (const auto& [unit, state] : content.beginnings) {
    if (unit >= layout.units.size()) violated("the beginning of a unit that is not there");
    if (state.n_bytes == 0 || state.n_bytes % 64 != 0 ||
        state.n_bytes >= layout.range(unit).n_bytes) {
      violated("a beginning that is none");
    }
    for (const auto& believed : content.believed) {
      if (believed.first == unit) violated("the beginning of a unit that is whole");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moesaic::fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static FixedBoot ops;
  static const Bytes good = good_file(ops);
  static const moesaic::fuzz::MemoryFile memory;
  if (size == 0) return 0;
  fuzz::Input input = fuzz::input_of({data, size}, good);
  if (input.repair) repair(input.file);
  memory.fill(input.file);
  const moesaic::fuzz::Stopwatch stopwatch;
  const SliceJournal::Content content =
      SliceJournal(small().layout, memory.path(), ops).read(part());
  check(content);
  if (input.file == good && content.believed.size() != 3)
    violated("a good journal is not believed");
  moesaic::fuzz::check_allocations(input.file.size());
  return 0;
}
