// What the tests of pulls share: a small model's file, a slice of it, and sources that have it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "cluster/weight_rig.h"

namespace moesaic::cluster::testing {

class SliceTest : public ::testing::Test {
 protected:
  void SetUp() override { set_model({}); }
  void set_model(const ModelSpec& spec) {
    model_path = write_model(origin, "m.gguf", spec);
    whole = gguf::File::open(model_path);
    content = content_of(*whole);
    identity = content.identity;
    tensors = layer_tensors(1, 3);
    slice_bytes = bytes_of(*whole, tensors);
    header_bytes = whole->headers()[0].size();
  }
  OpenSlice request(const std::vector<std::shared_ptr<BlobSource>>& sources = {}) const {
    OpenSlice slice;
    slice.content = content;
    slice.name = "m.gguf";
    slice.tensors = tensors;
    slice.sources = sources;
    return slice;
  }
  std::shared_ptr<FileSource> source(const std::string& name = "source:1") const {
    return std::make_shared<FileSource>(whole, name);
  }
  std::shared_ptr<FileSource> knowing_source(const std::string& name = "source:1") const {
    return source(name);
  }
  void expect_good(const OpenedSlice& opened) const {
    expect_same_weights(*opened.file, *whole, tensors);
  }
  std::string slice_path(const Folder& cache) const {
    for (const std::string& name : cache.names(".slice")) {
      if (name.ends_with(".slice")) return cache / name;
    }
    return "";
  }

  Folder origin;
  std::string model_path;
  std::shared_ptr<const gguf::File> whole;
  Content content;
  wire::Digest identity{};  // of it
  std::vector<std::string> tensors;
  std::uint64_t slice_bytes = 0;
  std::uint64_t header_bytes = 0;
};

}  // namespace moesaic::cluster::testing
