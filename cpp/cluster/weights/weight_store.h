// A machine's weights for the cluster: its own GGUF files under one folder and pulled slices in a
// cache, each proven by digest before use, and served to others. Every byte of weights that is read
// or fetched is counted. Not for understanding models, and not for mapping into a backend.
// Rules: RELIABILITY 6.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/content.h"
#include "cluster/weights/identify.h"
#include "gguf/file.h"
#include "wire/messages.h"

namespace moesaic::cluster {

class FileOps;

// Where weights can be fetched from: a peer or the coordinator. Calls block; any thread, several at
// once. Throws NetError, DeadlineError, CancelledError; IoError when it does not have the bytes.
class BlobSource {
 public:
  virtual ~BlobSource() = default;
  virtual std::string name() const = 0;  // for logs and errors: "10.0.0.2:9777"
  // Null when it does not have the model.
  virtual std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request,
                                                 const CancelFlag* cancel) = 0;
  virtual std::vector<std::uint8_t> fetch(const wire::BlobRequest& request,
                                          const CancelFlag* cancel) = 0;
};

struct OpenSlice {
  Content content;                   // what it must be; not known: by name, headers only
  std::string name;                  // a file name, never a path
  std::vector<std::string> tensors;  // whole tensors, by name; empty: headers only
  wire::DigestPolicy digests = wire::DigestPolicy::kFirst;
  std::vector<std::shared_ptr<BlobSource>> sources;  // asked in order, several chunks at a time
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes, const char* what)>
      progress;  // what: "pull", "verify"; on the calling thread, at most some 20 times a second;
                 // 0 of 1 while it waits: "waiting for another load", "writing to disk"
  const CancelFlag* cancel = nullptr;
};

struct OpenedSlice {
  std::shared_ptr<const gguf::File> file;  // bytes() of other tensors may throw ArgumentError
  std::string source;                      // "local copy", "cache", "pulled", "pulled, not kept"
  std::uint64_t bytes_read = 0;            // weights read for digests, or fetched
  std::vector<std::string> paths;          // what it is mapped from; in memory: none
  FileStates states;                       // of these, when it was proven
};

struct StoreOptions {
  std::string models_dir;
  std::string cache_dir;
  std::uint64_t cache_bytes = 0;  // at most; 0: what the disk has, less a reserve
  std::function<void(const std::string& event, const std::string& text)> log;
  FileOps* ops = nullptr;  // tests make the disk fail; null: the system's
};

class WeightStore {
 public:
  static std::unique_ptr<WeightStore> make(const StoreOptions& options);
  virtual ~WeightStore() = default;
  // The slice, proven: a local copy, the cache, or pulled. A local copy that holds other weights,
  // or a file of the cache that is damaged, is not used (and logged). Throws IoError when no source
  // has it (naming the local copies that differ), FormatError when what came does not match its
  // digests (after one more try), OutOfMemoryError when neither disk nor memory has room, what a
  // source threw when all are lost, CancelledError.
  virtual OpenedSlice open(const OpenSlice& request) = 0;
  // What a file is that this process has opened otherwise (the coordinator's own). Reads all of it
  // that no digest is remembered of. Throws FormatError when it has changed since it was opened.
  virtual Content identify(const std::shared_ptr<const gguf::File>& file,
                           const ReadOptions& options) = 0;
  // Such a file, to be served to others for as long as somebody else holds it. Its tensors must be
  // those of its headers.
  virtual void offer(std::shared_ptr<const gguf::File> file, const Content& content,
                     const std::string& name) = 0;
  // For others: what is known of a model, by identity or (all zero) by name; null: nothing. By name
  // all of a local copy is read when no digests of it are remembered, on another thread: until that
  // is done the answer says how far it is.
  virtual std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request) = 0;
  // Throws ArgumentError for a range outside the tensor, IoError when it is not here.
  virtual std::vector<std::uint8_t> read(const wire::BlobRequest& request) = 0;
  virtual std::uint64_t bytes_read() const = 0;  // weights read for digests or fetched, ever
};

}  // namespace moesaic::cluster
