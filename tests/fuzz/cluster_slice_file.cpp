// libFuzzer target: any bytes, or a good file with changes, as a file of the cache that is said to
// be a certain slice. Either an error or exactly that slice with the digests that lie there, within
// 10 ms and without a single allocation above twice the file and 1 MB. Seeds:
// corpus/cluster_slice_file/ (make_cluster_corpus.py); their form is input_of().
#include <cstddef>
#include <cstdint>

#include "base/digest.h"
#include "base/errors.h"
#include "small_slice.h"

namespace {

using moesaic::fuzz::violated;
using namespace moesaic::cluster;
using moesaic::cluster::fuzz::Bytes;

constexpr std::size_t kDigestBytes = 32;

const fuzz::SmallSlice& small() {
  static const fuzz::SmallSlice slice;
  return slice;
}

Bytes good_file() {
  const SliceLayout& layout = small().layout;
  Bytes file = layout.head;
  file.resize(layout.trailer_offset);
  const Bytes trailer = make_trailer(layout, small().digests);
  file.insert(file.end(), trailer.begin(), trailer.end());
  return file;
}

// The digest over head and units, where the trailer of this slice has it.
void repair(Bytes& file) {
  const SliceLayout& layout = small().layout;
  if (file.size() != layout.file_bytes) return;
  const std::size_t n_units_bytes = layout.units.size() * kDigestBytes;
  moesaic::Sha256 sha;
  sha.update(file.data(), layout.head.size());
  sha.update(&file[layout.trailer_offset], n_units_bytes);
  const auto right = sha.finish();
  std::copy(right.begin(), right.end(),
            file.begin() + static_cast<std::ptrdiff_t>(layout.trailer_offset + n_units_bytes));
}

void check(const SliceInfo& info, const Bytes& file) {
  if (info.layout.file_bytes != file.size()) violated("a slice of another length");
  if (!std::equal(info.layout.head.begin(), info.layout.head.end(), file.begin())) {
    violated("a head has two spellings");
  }
  if (info.digests.size() != info.layout.units.size()) violated("another number of digests");
  const std::uint8_t* at = &file[info.layout.trailer_offset];
  for (const auto& digest : info.digests) {
    if (std::memcmp(digest.data(), at, kDigestBytes) != 0) violated("another digest");
    at += kDigestBytes;
  }
}

// False: an error, and not one that says nothing.
template <typename Call>
bool runs(Call&& call) {
  try {
    call();
    return true;
  } catch (const moesaic::FormatError& error) {
    if (*error.what() == '\0') violated("an error that says nothing");
  } catch (const FileError&) {  // it ends too early
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moesaic::fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Bytes good = good_file();
  static const moesaic::fuzz::MemoryFile memory;
  static FileOps ops;
  if (size == 0) return 0;
  fuzz::Input input = fuzz::input_of({data, size}, good);
  if (input.repair) repair(input.file);
  memory.fill(input.file);
  const int fd = memory.fd();
  const std::string& path = memory.path();
  const Content& content = small().content;
  const moesaic::fuzz::Stopwatch stopwatch;
  const bool is_it = runs([&] {
    const SliceInfo info = read_slice_info(ops, fd, path, content, small().tensors, "small.gguf");
    check(info, input.file);
    // Headers of one identity may be spelled in several ways: offsets in the model's own file.
    if (info.layout.units != small().layout.units ||
        info.layout.weights_bytes != small().layout.weights_bytes) {
      violated("another slice than was asked for");
    }
  });
  bool is_any = false;
  runs([&] {
    const auto info = read_any_slice_info(ops, fd, path, content, "small.gguf");
    if (info) check(*info, input.file);
    is_any = info.has_value();
  });
  if (is_it && !is_any) violated("the slice is none at all");
  runs([&] {
    const auto headers = read_slice_headers(ops, fd, path, content, "small.gguf");
    if (headers && !has_headers_of(*headers, content)) violated("other headers");
  });
  moesaic::fuzz::check_allocations(input.file.size());
  return 0;
}
