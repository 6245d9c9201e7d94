// What this machine can give to others of a model: files and slices that are in use here, and
// people's copies that are looked for when somebody asks. What it says of them proves itself
// (content.h). Not for links: blob_server.h. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/content.h"
#include "cluster/weights/digest_book.h"
#include "cluster/weights/local_copies.h"

namespace moesaic::cluster {

struct ServedFile {
  Content content;  // without tensors: it is only claimed, those who fetch prove it
  std::string name;
  std::weak_ptr<const gguf::File> file;
  UnitDigests digests;             // of a slice; those of files are in the book under their states
  std::vector<std::string> paths;  // of a file on the disk
  FileStates states;
};

class ServedFiles {
 public:
  using Log = std::function<void(const std::string& event, const std::string& text)>;
  ServedFiles(LocalCopies& local, DigestBook& book, FileOps& ops, Log log);
  ~ServedFiles();  // ends the reading
  ServedFiles(const ServedFiles&) = delete;
  ServedFiles& operator=(const ServedFiles&) = delete;

  // For as long as somebody else holds the file.
  void add(ServedFile file);
  // As WeightStore has them.
  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request);
  std::vector<std::uint8_t> read(const wire::BlobRequest& request);

 private:
  // A copy all of which is read because somebody asked what it is.
  struct Reading {
    std::atomic<std::uint64_t> done_bytes{0};
    std::atomic<std::uint64_t> total_bytes{1};
    std::atomic<std::chrono::steady_clock::time_point> asked{std::chrono::steady_clock::now()};
    std::atomic<bool> is_over{false};
    std::string error;  // set before is_over
    CancelFlag cancel;
    std::thread thread;
  };
  using FilePtr = std::shared_ptr<const gguf::File>;

  std::optional<wire::Manifest> find(const wire::ManifestRequest& request);
  bool find_copy(const wire::ManifestRequest& request);
  std::optional<wire::Manifest> manifest_by_name(const wire::ManifestRequest& request);
  // Goes on with the reading or begins it. Null: it is over, without success.
  std::optional<wire::Manifest> read_all(const LocalFile& local);
  void keep_open(const FilePtr& file);
  std::vector<std::pair<ServedFile, FilePtr>> with_identity(const wire::Digest& identity);
  std::vector<std::uint8_t> read_tensor(const ServedFile& served, const gguf::File& file,
                                        const wire::BlobRequest& request);

  LocalCopies& local_;
  DigestBook& book_;
  FileOps& ops_;
  Log log_;
  std::mutex mutex_;
  std::vector<ServedFile> files_;  // the latest last
  std::vector<FilePtr> open_;
  std::map<FileStates, std::unique_ptr<Reading>> readings_;
  std::mutex turn_;  // one file is read at a time
};

}  // namespace moesaic::cluster
