// Pulls from sources that lie, lack, and leave, and from other slices of the cache. What must hold:
// it loads, or it is a typed error that names who said what.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "cluster/slice_rig.h"

namespace moesaic::cluster::testing {
namespace {

using namespace std::chrono_literals;

using PullSources = SliceTest;

TEST_F(PullSources, ASpoiledChunkIsAskedForOnceMore) {
  Folder cache;
  const auto a = knowing_source();
  std::atomic<int> n{0};
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor != wire::kHeaderTensor && n++ == 3) bytes[bytes.size() / 2] ^= 4;
  };
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({a})));
  // Always wrong: a FormatError that names what and who, and no file.
  Folder other;
  Rig spoiled("", other.str());
  a->spoil = [](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor == 5) bytes[0] ^= 4;
  };
  const std::string text = thrown<FormatError>([&] { spoiled.store->open(request({a})); });
  EXPECT_NE(text.find("blk.1.ffn_up_exps.weight, expert 0"), std::string::npos) << text;
  EXPECT_NE(text.find("source:1"), std::string::npos) << text;
  EXPECT_TRUE(slice_path(other).empty());
  // Another one has it right.
  const OpenedSlice opened = spoiled.store->open(request({a, knowing_source("source:2")}));
  expect_good(opened);
}

TEST_F(PullSources, SpoiledHeadersAreNotBelieved) {
  Folder cache;
  const auto a = source();
  a->spoil = [](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor == wire::kHeaderTensor) bytes[30] ^= 1;
  };
  Rig rig("", cache.str());
  thrown<IoError>([&] { rig.store->open(request({a})); });
  expect_good(rig.store->open(request({a, source("source:2")})));
}

TEST_F(PullSources, HeadersOfAnotherModelAreNotBelieved) {
  // Whole and well-formed, of the same length, but not those that the manifest names.
  ModelSpec other_spec;
  other_spec.seed = 2;
  const auto other = gguf::File::open(write_model(origin, "other.gguf", other_spec));
  ASSERT_EQ(other->headers()[0].size(), header_bytes);
  Folder cache;
  const auto a = source();
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor != wire::kHeaderTensor) return;
    const auto from = other->headers()[0].subspan(blob.offset, blob.n_bytes);
    bytes.assign(from.begin(), from.end());
  };
  Rig rig("", cache.str());
  OpenSlice headers = request({a});
  headers.tensors.clear();
  for (const OpenSlice& slice : {request({a}), headers}) {
    const std::string text = thrown<IoError>([&] { rig.store->open(slice); });
    EXPECT_NE(text.find("another identity"), std::string::npos) << text;
  }
}

TEST_F(PullSources, SourcesThatHaveOnlyAPartOfIt) {
  Folder cache;
  const auto only = [&](std::uint32_t begin, std::uint32_t end, const std::string& name) {
    auto made = source(name);
    made->on_fetch = [=](const wire::BlobRequest& blob) {
      if (blob.tensor != wire::kHeaderTensor && (blob.tensor < begin || blob.tensor >= end)) {
        fail<IoError>("this tensor is not here");
      }
    };
    return made;
  };
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({only(0, 6, "source:1"), only(6, 9, "source:2")})));
  Folder other;
  Rig lacking("", other.str());
  const std::string text = thrown<IoError>([&] {
    lacking.store->open(request({only(0, 6, "source:1"), only(0, 7, "source:2")}));
  });
  EXPECT_NE(text.find("blk.2."), std::string::npos) << text;
}

TEST_F(PullSources, WhatOnlyALostSourceHadIsAnError) {
  // One has all but the last tensor, which waits for the other; that is lost over other tensors.
  // Nobody may wait for it any more.
  for (int round = 0; round < 10; ++round) {
    Folder cache;
    std::atomic<int> n_held{0};
    std::atomic<int> n_lost{0};
    std::atomic<bool> is_refused{false};
    const auto until = [](const std::function<bool()>& done) {
      for (int i = 0; i < 2000 && !done(); ++i) std::this_thread::sleep_for(1ms);
    };
    const auto a = source("source:1");
    a->on_fetch = [&](const wire::BlobRequest& blob) {
      if (blob.tensor == wire::kHeaderTensor) return;
      until([&] { return n_held >= 4; });  // its threads have taken what comes first
      if (blob.tensor != 8) return;
      is_refused = true;
      fail<IoError>("this tensor is not here");
    };
    const auto b = source("source:2");
    b->on_fetch = [&](const wire::BlobRequest& blob) {
      if (blob.tensor == wire::kHeaderTensor) return;
      const bool is_late = ++n_held > 4;
      until([&] { return is_late ? n_lost >= 4 : is_refused.load(); });
      ++n_lost;
      fail<NetError>("source:2: gone");
    };
    Rig rig("", cache.str());
    OpenSlice slice = request({a, b});
    slice.tensors = layer_tensors(0, 3);
    CancelFlag hangs;
    slice.cancel = &hangs;
    std::atomic<bool> ended{false};
    std::thread watchdog([&] {
      until([&] { return ended.load(); });
      until([&] { return ended.load(); });
      hangs.set();
    });
    thrown<NetError>([&] { rig.store->open(slice); });
    ended = true;
    watchdog.join();
  }
}

TEST_F(PullSources, ASpoiledChunkIsAskedForAgainWhereItIs) {
  Folder cache;
  const auto a = knowing_source("source:1");
  std::atomic<int> n{0};
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor == 4 && n++ == 0) bytes[0] ^= 1;
  };
  const auto b = source("source:2");  // has nothing but the headers
  b->on_fetch = [](const wire::BlobRequest& blob) {
    if (blob.tensor != wire::kHeaderTensor) fail<IoError>("this tensor is not here");
  };
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({a, b})));
  EXPECT_EQ(n, 2);
}

TEST_F(PullSources, ShortAndLongChunksAreRefused) {
  for (const int change : {-1, +1}) {
    Folder cache;
    const auto a = source();
    a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
      if (blob.tensor != wire::kHeaderTensor) bytes.resize(bytes.size() + change);
    };
    Rig rig("", cache.str());
    thrown<ProtocolError>([&] { rig.store->open(request({a})); });
    EXPECT_TRUE(slice_path(cache).empty());
  }
}

// --- other plans

TEST_F(PullSources, AnotherPlanFetchesOnlyWhatIsNew) {
  Folder cache;
  const auto a = knowing_source();
  {
    Rig rig("", cache.str());
    rig.store->open(request({a}));
    OpenSlice wider = request({a});
    wider.tensors = layer_tensors(0, 3);
    const std::uint64_t before = a->n_bytes;
    expect_same_weights(*rig.store->open(wider).file, *whole, wider.tensors);
    EXPECT_EQ(a->n_bytes - before, bytes_of(*whole, layer_tensors(0, 1)));
  }
  // One that lies within another needs nobody.
  Rig rig("", cache.str());
  OpenSlice narrow = request({});
  narrow.tensors = layer_tensors(1, 2);
  const OpenedSlice opened = rig.store->open(narrow);
  expect_same_weights(*opened.file, *whole, narrow.tensors);
  EXPECT_EQ(opened.bytes_read, bytes_of(*whole, narrow.tensors));
}

}  // namespace
}  // namespace moesaic::cluster::testing
