// GGUFFile: an open GGUF file set as Python holds it, with the state its files were in. Bound in
// gguf.cpp; the cluster makes one of the headers that a worker sends, and then its weights are not
// here.
#pragma once

#include <memory>
#include <utility>

#include "cluster/weights/digest_book.h"
#include "gguf/file.h"

namespace moesaic::bindings {

// Views that it has given out keep the mapping alive by themselves.
class GGUFFile {
 public:
  // states: of the parts on this machine's disk; none when they are not here.
  explicit GGUFFile(std::shared_ptr<const gguf::File> file, cluster::FileStates states = {})
      : file_(std::move(file)), states_(std::move(states)) {}

  const gguf::File& file() const { return *file_; }
  const std::shared_ptr<const gguf::File>& shared() const { return file_; }
  const cluster::FileStates& states() const { return states_; }

 private:
  std::shared_ptr<const gguf::File> file_;
  cluster::FileStates states_;
};

}  // namespace moesaic::bindings
