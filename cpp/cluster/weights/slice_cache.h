// The folder of pulled slices: what they are called, who may write one, which are proven, and what
// happens to bad and abandoned ones. Several processes may share it. Not for fetching:
// slice_pull.h.
//
//   <name>.slice           a finished slice; name = SHA-256(identity of the content, descriptor)
//   <name>.slice.part      one being fetched, and <name>.slice.journal (slice_target.h)
//   <name>.slice.bad       one that was found damaged; at most one in the folder
//   <name>.lock            held (flock) by whoever fetches or sets aside; gone with its process
//   *.digests              digest_book.h, and digests.lock
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/digest_book.h"
#include "cluster/weights/slice_file.h"
#include "cluster/weights/slow_calls.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {

class SliceCache {
 public:
  using Log = std::function<void(const std::string& event, const std::string& text)>;
  // Makes the folder when it is not there, and removes what dead processes have left in it.
  // limit_bytes: of all slices in it; 0: what the disk has, less FileOps::reserve_bytes.
  SliceCache(std::string folder, std::uint64_t limit_bytes, FileOps& ops, DigestBook& book,
             Log log);

  std::string path_of(const wire::Digest& identity, const std::vector<std::string>& tensors) const;

  // The holder may write and set aside. Waits for another's, and says so; throws CancelledError.
  class Lock {
   public:
    Lock() = default;
    explicit Lock(Fd fd) : fd_(std::move(fd)) {}

   private:
    Fd fd_;  // closing it gives it back
  };
  Lock lock(const std::string& path, const Waiting& waiting) const;

  struct Found {
    std::shared_ptr<const gguf::File> file;
    UnitDigests digests;
    FileState state;
    std::uint64_t bytes_read = 0;
  };
  struct Query {
    Content content;
    std::vector<std::string> tensors;
    std::string name;
    wire::DigestPolicy digests = wire::DigestPolicy::kFirst;
    const CancelFlag* cancel = nullptr;
    std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
  };
  // The slice, proven as the policy says; null when it is not there, or was bad and has been set
  // aside. With the slice's lock held. bytes_read of a bad one are added to *wasted_bytes.
  std::optional<Found> open(const Query& query, std::uint64_t* wasted_bytes);
  // A model's headers from any slice of it, half fetched ones too; null: none is here.
  std::shared_ptr<const gguf::File> headers(const Content& content, const std::string& name) const;
  // A slice that has just been written and proven: the next open reads nothing.
  void remember(const std::string& path, const UnitDigests& digests);
  // What other slices have of the content, of this model, of one that shares tensors with it, or
  // written by a release that knew models by their headers: only tensors whose digests prove that
  // they are the content's. Null: nothing is here. `path`: the slice that is not to be looked at.
  std::shared_ptr<BlobSource> source(const Content& content, const std::string& name,
                                     const std::string& path) const;
  // Throws out what nobody uses until n_bytes may be added to the cache: what was set aside or half
  // fetched, then the slices that were used longest ago; `path` and its temporaries stay. Nothing
  // is thrown out when even all of it would not do. True: there is room.
  bool make_room(const std::string& path, std::uint64_t n_bytes) const;

 private:
  struct Evictable {
    std::string file;
    bool is_slice = false;  // else set aside or half fetched: goes first
    std::filesystem::file_time_type used;
    std::uint64_t n_bytes = 0;
    std::vector<Fd> locks;  // nobody else has it
  };
  std::optional<Evictable> evictable(const std::string& file) const;
  std::uint64_t room_bytes() const;  // that may be added
  void clean() const;
  void drop_bad() const;
  void set_aside(const std::string& path, const std::string& why) const;

  std::string folder_;
  std::uint64_t limit_bytes_;
  FileOps& ops_;
  DigestBook& book_;
  Log log_;
};

}  // namespace moesaic::cluster
