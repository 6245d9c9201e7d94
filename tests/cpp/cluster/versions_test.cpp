// An upgrade in the middle: other protocols are refused by name on both sides, another release of
// the same protocol works, and what an older release has left in a cache is proven anew.
#include <gtest/gtest.h>

#include "cluster/cluster_rig.h"
#include "cluster/slice_rig.h"
#include "cluster/weights/slice_file.h"
#include "net/rig.h"

namespace moesaic::cluster::testing {
namespace {

using net::testing::eventually;
using net::testing::RawPeer;

struct Protocol {
  std::uint8_t major;
  std::uint8_t minor;
};
const std::vector<Protocol> kOthers{{wire::kVersionMajor, wire::kOldestMinor - 1},
                                    {wire::kVersionMajor - 1, 9},
                                    {wire::kVersionMajor + 1, 0}};

std::string text_of(const Protocol& protocol) {
  return strcat("Moesaic 0.0.9 (protocol ", int{protocol.major}, ".", int{protocol.minor}, ")");
}

TEST(Versions, AWorkerRefusesAnotherProtocolByNameAndLogsIt) {
  ClusterRig rig(model::testing::tiny_llama(), {.n_workers = 1, .encrypted = false});
  for (const Protocol& protocol : kOthers) {
    RawPeer coordinator(rig.workers()[0]->address());
    wire::Hello hello;
    hello.version_major = protocol.major;
    hello.version_minor = protocol.minor;
    hello.release = "0.0.9";
    hello.node = net::random_node_id();
    coordinator.send(net::testing::frame_of(hello, 0));
    const auto frame = coordinator.receive_frame();
    ASSERT_TRUE(frame.has_value());
    const auto* reason = std::get_if<wire::GoAway>(&frame->message);
    ASSERT_NE(reason, nullptr);
    EXPECT_EQ(reason->reason, wire::Reason::kVersion);
    EXPECT_NE(reason->text.find(text_of(protocol)), std::string::npos) << reason->text;
    EXPECT_NE(reason->text.find("Moesaic test (protocol "), std::string::npos) << reason->text;
    EXPECT_TRUE(eventually([&] { return rig.log().find(text_of(protocol)) != std::string::npos; }))
        << rig.log();
  }
}

TEST(Versions, ACoordinatorNamesAWorkerOfAnotherProtocolAndWhatToDo) {
  for (const Protocol& protocol : kOthers) {
    std::string at;
    const std::string text = net::testing::error_at_a_server_that(
        [&](RawPeer& worker) {
          worker.receive_frame();
          wire::Welcome welcome;
          welcome.version_major = protocol.major;
          welcome.version_minor = protocol.minor;
          welcome.release = "0.0.9";
          welcome.node = net::random_node_id();
          worker.send(net::testing::frame_of(welcome, 0));
          worker.sees_end();
        },
        [&](const std::string& address) {
          at = address;
          CoordinatorOptions options;
          options.addresses = {address};
          options.release = "test";
          Coordinator::connect(options, nullptr);
        });
    for (const std::string& part : {at, text_of(protocol), std::string("Moesaic test (protocol "),
                                    std::string("install the newer one on both")}) {
      EXPECT_NE(text.find(part), std::string::npos) << text;
    }
  }
}

TEST(Versions, AnotherReleaseOfTheSameProtocolWorksAndIsNotCalledDeterministic) {
  const auto recipe = model::testing::tiny_llama({.n_layers = 4});
  ClusterRig rig(recipe, {.n_workers = 2, .release = "0.0.9"});
  rig.upgrade_worker(1);  // in the middle of an upgrade: the second one has been restarted
  DeployOptions options;
  options.load = ClusterRig::load_options();
  const std::string text = thrown<ArgumentError>([&] { rig.deploy(options); });
  for (const char* part : {"deterministic=True", "release 0.0.9", "release test"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  options.load.deterministic = false;
  const auto runner = rig.deploy(options);
  const auto tokens = model::testing::some_tokens(30, runner->config().vocab, 1);
  const auto expected = model::testing::all_logits(*runner, tokens, 30);
  // Saved rows of the mixed cluster, in one of the new release, and back.
  const auto id = runner->open();
  model::testing::run_one(*runner, model::testing::rows(id, 0, {tokens.begin(), tokens.end() - 1},
                                                        model::Logits::kNone));
  const auto saved = runner->save(id, nullptr);
  ClusterRig renewed(recipe, {.n_workers = 1});
  const auto other = renewed.deploy(options);
  const auto last = [&](model::Runner& on) {
    const auto back = on.load(saved, std::span(tokens).first(29), nullptr);
    return model::testing::run_one(
               on, model::testing::rows(back, 29, {tokens.back()}, model::Logits::kLast))
        .logits;
  };
  const std::vector<float> want(expected.end() - runner->config().vocab, expected.end());
  EXPECT_EQ(last(*other), want);
  EXPECT_EQ(last(*runner), want);
}

class OldCache : public SliceTest {
 protected:
  // The slice as releases wrote it that knew models by their headers.
  void write_old(const Folder& cache, const gguf::File& weights, std::uint32_t version = 1) const {
    const auto directory = gguf::File::from_headers(whole->headers()[0], "m.gguf");
    const SliceLayout layout = make_layout(directory, content.headers, tensors, version);
    Bytes bytes(layout.file_bytes);
    std::copy(layout.head.begin(), layout.head.end(), bytes.begin());
    std::vector<wire::Digest> digests;
    for (const SlicePlace& place : layout.places) {
      const auto from = weights.bytes(weights.tensors()[place.tensor]);
      std::copy(from.begin(), from.end(),
                bytes.begin() + static_cast<std::ptrdiff_t>(place.offset));
    }
    for (std::size_t i = 0; i < layout.units.size(); ++i) {
      const SliceLayout::Range range = layout.range(i);
      Sha256 sha;
      sha.update(bytes.data() + range.offset, range.n_bytes);
      digests.push_back(sha.finish());
    }
    const auto trailer = make_trailer(layout, digests);
    std::copy(trailer.begin(), trailer.end(),
              bytes.begin() + static_cast<std::ptrdiff_t>(layout.trailer_offset));
    write_file(cache / "0123456789abcdef.slice", bytes);
  }
};

TEST_F(OldCache, OfTheSameWeightsIsProvenAnewAndNotFetched) {
  Folder cache;
  write_old(cache, *whole);
  const auto from = source();
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({from})));
  EXPECT_LE(from->n_bytes, header_bytes);
}

TEST_F(OldCache, OfOtherWeightsUnderEqualHeadersIsNotUsed) {
  Folder folder;
  Bytes bytes = read_file(model_path);
  for (std::size_t i = bytes.size() - 4096; i < bytes.size(); ++i) bytes[i] ^= 1;
  write_file(folder / "m.gguf", bytes);
  const auto other = gguf::File::open(folder / "m.gguf");
  Folder cache;
  write_old(cache, *other);
  const auto from = source();
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({from})));
  EXPECT_GT(from->n_bytes, header_bytes);  // what differs
}

TEST_F(OldCache, ANewerReleasesSlicesAndADamagedBookDoNotMatter) {
  Folder cache;
  write_file(cache / "fedcba.slice", Bytes(5000, 7));
  write_file(cache / "00.digests", Bytes(300, 7));
  write_old(cache, *whole, 99);
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({source()})));
  expect_good(rig.store->open(request({})));
}

}  // namespace
}  // namespace moesaic::cluster::testing
