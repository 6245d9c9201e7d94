// GGUFFile: an open GGUF file set as Python holds it. Bound in gguf.cpp; the cluster makes one of
// the headers that a worker sends, and then its weights are not here.
#pragma once

#include <memory>
#include <utility>

#include "gguf/file.h"

namespace moesaic::bindings {

// Views that it has given out keep the mapping alive by themselves.
class GGUFFile {
 public:
  explicit GGUFFile(std::shared_ptr<const gguf::File> file) : file_(std::move(file)) {}

  const gguf::File& file() const { return *file_; }
  const std::shared_ptr<const gguf::File>& shared() const { return file_; }

 private:
  std::shared_ptr<const gguf::File> file_;
};

}  // namespace moesaic::bindings
