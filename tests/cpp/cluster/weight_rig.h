// What the tests of weights share: a folder that goes away, seeded model files, sources without a
// network that count and fail on order, and a disk that fails on order.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "base/errors.h"
#include "base/thrown.h"
#include "cluster/weights/content.h"
#include "cluster/weights/file_ops.h"
#include "cluster/weights/weight_store.h"
#include "cluster/weights/weight_units.h"
#include "gguf/writer.h"

namespace moesaic::cluster::testing {

namespace fs = std::filesystem;
using moesaic::testing::thrown;
using Bytes = std::vector<std::uint8_t>;

// In memory where the system has such a place: these tests write thousands of small files.
class Folder {
 public:
  Folder() {
    const bool shared_memory = access("/dev/shm", W_OK) == 0;
    const fs::path parent = shared_memory ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string pattern = (parent / "moesaic_weights_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw IoError("mkdtemp");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string str() const { return path_.string(); }
  // Names of the files in it that contain `part`, sorted.
  std::vector<std::string> names(const std::string& part = "") const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(path_)) {
      const std::string name = entry.path().filename().string();
      if (name.find(part) != std::string::npos) found.push_back(name);
    }
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  fs::path path_;
};

inline Bytes read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

inline Bytes noise(std::size_t n, std::uint64_t seed) {
  Bytes bytes(n);
  std::uint64_t state = seed * 0x9E3779B97F4A7C15U + 1;
  for (std::uint8_t& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<std::uint8_t>(state >> 32);
  }
  return bytes;
}

// A model-like file: per layer a norm, a matrix and experts; sizes in bytes of an expert.
struct ModelSpec {
  int n_layers = 3;
  std::uint64_t n_experts = 4;
  std::uint64_t expert_rows = 24;  // of 256 I8 elements
  std::uint64_t seed = 1;
};

inline std::vector<std::string> layer_tensors(int begin, int end) {
  std::vector<std::string> names;
  for (int i = begin; i < end; ++i) {
    for (const char* part : {"attn_norm.weight", "attn_q.weight", "ffn_up_exps.weight"}) {
      names.push_back(strcat("blk.", i, ".", part));
    }
  }
  return names;
}

inline void add_layers(gguf::Writer& writer, const ModelSpec& spec, int begin, int end) {
  using quant::Qtype;
  for (int i = begin; i < end; ++i) {
    const std::uint64_t seed = spec.seed * 1000 + static_cast<std::uint64_t>(i) * 10;
    const std::string block = strcat("blk.", i, ".");
    const std::uint64_t norm[] = {64};
    writer.add_tensor(block + "attn_norm.weight", Qtype::kF32, norm, noise(256, seed));
    const std::uint64_t q[] = {256, 100};
    writer.add_tensor(block + "attn_q.weight", Qtype::kI8, q, noise(25600, seed + 1));
    const std::uint64_t up[] = {256, spec.expert_rows, spec.n_experts};
    writer.add_tensor(block + "ffn_up_exps.weight", Qtype::kI8, up,
                      noise(256 * spec.expert_rows * spec.n_experts, seed + 2));
  }
}

inline Bytes model_bytes(const ModelSpec& spec = {}) {
  gguf::Writer writer;
  writer.add_string("general.architecture", "test");
  writer.add_uint("general.seed", gguf::ValueType::kU64, spec.seed);
  add_layers(writer, spec, 0, spec.n_layers);
  return writer.finish();
}

inline std::string write_model(const Folder& folder, const std::string& name = "m.gguf",
                               const ModelSpec& spec = {}) {
  const std::string path = folder / name;
  write_file(path, model_bytes(spec));
  return path;
}

inline std::uint64_t bytes_of(const gguf::File& file, const std::vector<std::string>& tensors) {
  std::uint64_t n = 0;
  for (const std::uint32_t tensor : tensor_indices(file, tensors)) {
    n += file.tensors()[tensor].n_bytes;
  }
  return n;
}

inline void expect_same_weights(const gguf::File& got, const gguf::File& want,
                                const std::vector<std::string>& tensors) {
  for (const std::string& name : tensors) {
    const auto a = got.bytes(*got.find_tensor(name));
    const auto b = want.bytes(*want.find_tensor(name));
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << name;
  }
}

inline UnitDigests digests_of(const gguf::File& file) {
  UnitDigests digests;
  for (std::uint32_t t = 0; t < file.tensors().size(); ++t) {
    const gguf::TensorInfo& tensor = file.tensors()[t];
    const std::uint64_t n = unit_bytes(tensor);
    for (std::uint32_t e = 0; e < n_units(tensor); ++e) {
      Sha256 sha;
      sha.update(file.bytes(tensor).data() + e * n, n);
      digests[{t, e}] = sha.finish();
    }
  }
  return digests;
}

inline Content content_of(const gguf::File& file) { return make_content(file, digests_of(file)); }

// What a store or a source is asked for; an unknown content: by name.
inline wire::ManifestRequest asking(const Content& content, const std::string& name) {
  wire::ManifestRequest request;
  request.identity = content.identity;
  request.headers = content.headers;
  request.name = name;
  return request;
}

// A source that has a whole file, in this process.
class FileSource final : public BlobSource {
 public:
  explicit FileSource(std::shared_ptr<const gguf::File> file, std::string name = "source:1")
      : digests(digests_of(*file)),
        content(make_content(*file, digests)),
        file_(std::move(file)),
        name_(std::move(name)) {}
  std::string name() const override { return name_; }
  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request,
                                         const CancelFlag*) override {
    ++n_manifests;
    if (on_manifest) on_manifest();
    wire::Manifest manifest;
    manifest.identity = content.identity;
    manifest.headers = content.headers;
    manifest.tensors = content.tensors;
    manifest.is_file = true;
    if (request.identity != wire::Digest{} && request.identity != manifest.identity) {
      return std::nullopt;
    }
    for (const auto header : file_->headers()) manifest.header_bytes += header.size();
    for (const auto& [unit, digest] : digests) {
      manifest.units.push_back({unit.tensor, unit.expert, digest});
    }
    return manifest;
  }
  std::vector<std::uint8_t> fetch(const wire::BlobRequest& request,
                                  const CancelFlag* cancel) override {
    if (cancel != nullptr) cancel->check();
    if (on_fetch) on_fetch(request);
    Bytes headers;
    std::span<const std::uint8_t> all;
    if (request.tensor == wire::kHeaderTensor) {
      for (const auto header : file_->headers())
        headers.insert(headers.end(), header.begin(), header.end());
      all = headers;
    } else {
      all = file_->bytes(file_->tensors()[request.tensor]);
    }
    const auto range = all.subspan(request.offset, request.n_bytes);
    Bytes out(range.begin(), range.end());
    if (spoil) spoil(request, out);
    n_bytes += out.size();
    ++n_fetches;
    return out;
  }

  UnitDigests digests;  // that the manifest tells
  Content content;      // that it claims
  std::function<void()> on_manifest;
  std::function<void(const wire::BlobRequest&)> on_fetch;       // may throw
  std::function<void(const wire::BlobRequest&, Bytes&)> spoil;  // what is sent
  std::atomic<int> n_manifests{0};
  std::atomic<int> n_fetches{0};
  std::atomic<std::uint64_t> n_bytes{0};

 private:
  std::shared_ptr<const gguf::File> file_;
  std::string name_;
};

// A disk whose n-th changing operation (and, if it stays broken, all later ones) fails.
class FaultyOps final : public FileOps {
 public:
  enum class Kind { kNoSpace, kIo, kShort };
  int fail_at = -1;  // counted from 0; -1: never
  Kind kind = Kind::kNoSpace;
  bool stays = false;
  std::atomic<int> count{0};
  std::function<void(int)> before;  // with the number of the operation

  int open(const char* path, int flags, unsigned mode) override {
    if ((flags & O_CREAT) != 0 && fails()) return -1;
    return FileOps::open(path, flags, mode);
  }
  std::int64_t pwrite(int fd, const void* bytes, std::size_t n_bytes,
                      std::uint64_t offset) override {
    if (fails()) {
      if (kind == Kind::kShort && n_bytes > 1) {
        return FileOps::pwrite(fd, bytes, n_bytes / 2, offset);
      }
      return -1;
    }
    return FileOps::pwrite(fd, bytes, n_bytes, offset);
  }
  int allocate(int fd, std::uint64_t n_bytes) override {
    return fails() ? -1 : FileOps::allocate(fd, n_bytes);
  }
  int truncate(int fd, std::uint64_t n_bytes) override {
    return fails() ? -1 : FileOps::truncate(fd, n_bytes);
  }
  int sync(int fd) override { return fails() ? -1 : FileOps::sync(fd); }
  int rename(const char* from, const char* to) override {
    return fails() ? -1 : FileOps::rename(from, to);
  }

 private:
  bool fails() {
    const int n = count++;
    if (before) before(n);
    if (fail_at < 0 || (stays ? n < fail_at : n != fail_at)) return false;
    errno = kind == Kind::kIo ? EIO : ENOSPC;
    return true;
  }
};

// A store with a log.
struct Rig {
  std::vector<std::pair<std::string, std::string>> log;
  std::mutex mutex;
  std::unique_ptr<WeightStore> store;

  Rig(const std::string& models, const std::string& cache, FileOps* ops = nullptr,
      std::uint64_t cache_bytes = 0) {
    StoreOptions options;
    options.models_dir = models;
    options.cache_dir = cache;
    options.cache_bytes = cache_bytes;
    options.ops = ops;
    options.log = [this](const std::string& event, const std::string& text) {
      const std::lock_guard lock(mutex);
      log.emplace_back(event, text);
    };
    store = WeightStore::make(options);
  }
  // Asks for a model by name until it is known what it is.
  std::optional<wire::Manifest> manifest(const std::string& name) {
    for (int i = 0; i < 2000; ++i) {
      auto found = store->manifest(asking({}, name));
      if (!found || found->identity != wire::Digest{}) return found;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return std::nullopt;
  }
  int logged(const std::string& part) const {
    int n = 0;
    for (const auto& [event, text] : log) {
      if (event.find(part) != std::string::npos || text.find(part) != std::string::npos) ++n;
    }
    return n;
  }
};

}  // namespace moesaic::cluster::testing
