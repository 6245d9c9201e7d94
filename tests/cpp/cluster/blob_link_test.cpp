// Weights over real links: stores that pull from each other under TLS, peers that vanish, stay
// silent, refuse, or do not take what they asked for.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "cluster/weight_rig.h"
#include "cluster/weights/blob_server.h"
#include "cluster/weights/blob_source.h"
#include "net/rig.h"

namespace moesaic::cluster::testing {
namespace {

using namespace std::chrono_literals;
using net::testing::eventually;
using net::testing::patient;

// A node: a listener whose links are answered from its store.
class Node {
 public:
  Node(net::NetThread& net, WeightStore& store, const std::optional<net::ClusterKey>& key)
      : server_(std::make_unique<BlobServer>(store)) {
    listener_ = net::listen(
        net, patient(key), "127.0.0.1:0",
        {.accepted = [this](std::shared_ptr<net::Connection> link) { accept(std::move(link)); }});
  }
  ~Node() { end(); }
  const std::string& address() const { return listener_->address(); }
  // What it does with a message before its server gets it; true: nothing more.
  std::function<bool(const std::shared_ptr<net::Connection>&, net::Incoming&)> first;
  std::atomic<int> n_requests{0};
  void end() {
    if (listener_) listener_->close();
    std::vector<std::shared_ptr<net::Connection>> all;
    {
      const std::lock_guard lock(mutex_);
      all.swap(links_);
    }
    for (const auto& link : all) {
      link->close();
      EXPECT_TRUE(link->wait_closed(net::testing::kPatience));
    }
    server_.reset();
  }
  void hang_up() {
    const std::lock_guard lock(mutex_);
    for (const auto& link : links_) link->close();
  }
  std::shared_ptr<net::Connection> link(std::size_t i) {
    EXPECT_TRUE(eventually([&] {
      const std::lock_guard lock(mutex_);
      return links_.size() > i;
    }));
    const std::lock_guard lock(mutex_);
    return links_.at(i);
  }

 private:
  void accept(std::shared_ptr<net::Connection> link) {
    {
      const std::lock_guard lock(mutex_);
      links_.push_back(link);
    }
    link->start({.on_message = [this, weak = std::weak_ptr(link)](net::Incoming&& incoming) {
      const auto there = weak.lock();
      if (!there || (first && first(there, incoming))) return;
      ++n_requests;
      EXPECT_TRUE(server_->take(there, incoming));
    }});
  }

  std::unique_ptr<BlobServer> server_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<net::Connection>> links_;
  std::unique_ptr<net::Listener> listener_;
};

class BlobLink : public ::testing::Test {
 protected:
  void SetUp() override {
    write_model(models);
    whole = gguf::File::open(models / "m.gguf");
    content = content_of(*whole);
    identity = content.identity;
  }
  OpenSlice request(const std::vector<std::string>& tensors,
                    std::vector<std::shared_ptr<BlobSource>> sources) const {
    OpenSlice slice;
    slice.content = content;
    slice.name = "m.gguf";
    slice.tensors = tensors;
    slice.sources = std::move(sources);
    return slice;
  }
  std::shared_ptr<PeerSource> peer(const Node& node, net::milliseconds deadline = 20s) {
    return std::make_shared<PeerSource>(net, patient(key), node.address(), deadline);
  }

  std::optional<net::ClusterKey> key = net::ClusterKey::random();
  net::NetThread net;
  Folder models;
  Folder cache;
  std::shared_ptr<const gguf::File> whole;
  Content content;
  wire::Digest identity{};  // of it
};

TEST_F(BlobLink, TwoStoresPullFromEachOther) {
  // Each has a model that the other has not, and both pull at once; a third pulls from both.
  Folder models_b;
  write_model(models_b, "b.gguf", {.seed = 2});
  const auto whole_b = gguf::File::open(models_b / "b.gguf");
  Folder cache_a;
  Folder cache_b;
  Rig a(models.str(), cache_a.str());
  Rig b(models_b.str(), cache_b.str());
  ASSERT_TRUE(a.manifest("m.gguf") && b.manifest("b.gguf"));  // each knows what it has
  Node node_a(net, *a.store, key);
  Node node_b(net, *b.store, key);
  const auto tensors = layer_tensors(0, 3);
  OpenedSlice at_a;
  OpenedSlice at_b;
  std::thread other([&] { at_b = b.store->open(request(tensors, {peer(node_a)})); });
  OpenSlice slice = request(tensors, {peer(node_b)});
  slice.content = content_of(*whole_b);
  slice.name = "b.gguf";
  at_a = a.store->open(slice);
  other.join();
  EXPECT_EQ(at_a.source, "pulled");
  EXPECT_EQ(at_b.source, "pulled");
  expect_same_weights(*at_a.file, *whole_b, tensors);
  expect_same_weights(*at_b.file, *whole, tensors);
  EXPECT_LE(static_cast<double>(at_b.bytes_read),
            1.02 * static_cast<double>(bytes_of(*whole, tensors)));

  Rig c("", cache.str());
  const OpenedSlice at_c = c.store->open(request(tensors, {peer(node_a), peer(node_b)}));
  expect_same_weights(*at_c.file, *whole, tensors);
}

TEST_F(BlobLink, TheOwnerOfALinkLendsIt) {
  // A worker asks its coordinator over the link that the coordinator has dialled.
  Rig worker("", cache.str());
  Rig coordinator("", "");
  coordinator.store->offer(whole, coordinator.store->identify(whole, {}), "m.gguf");
  BlobServer server(*coordinator.store);
  std::atomic<int> n_requests{0};
  std::shared_ptr<LinkSource> source;
  std::mutex mutex;
  Node node(net, *worker.store, key);
  node.first = [&](const auto&, net::Incoming& incoming) {
    const std::lock_guard lock(mutex);
    return source && source->take(incoming);
  };
  const auto link = net::dial(net, patient(key), node.address());
  link->start({.on_message = [&, weak = std::weak_ptr(link)](net::Incoming&& incoming) {
    const auto there = weak.lock();
    ++n_requests;
    EXPECT_TRUE(!there || server.take(there, incoming));
  }});
  {
    const std::lock_guard lock(mutex);
    source = std::make_shared<LinkSource>(node.link(0), "coordinator");
  }
  const auto tensors = layer_tensors(2, 3);
  const OpenedSlice opened = worker.store->open(request(tensors, {source}));
  expect_same_weights(*opened.file, *whole, tensors);
  // An error reply to something else on the link is not the source's.
  net::Incoming other;
  wire::ErrorReply reply;
  reply.request = 5;
  other.message = reply;
  EXPECT_FALSE(source->take(other));
  const int n_asked = n_requests;
  EXPECT_GT(n_asked, 0);
  source->lost(std::make_exception_ptr(NetError("10.0.0.1:1: silent for 3 s")));
  const std::string text =
      thrown<NetError>([&] { source->manifest(asking(content, ""), nullptr); });
  EXPECT_NE(text.find("silent for 3 s"), std::string::npos) << text;
  // Who is lost is not asked: an answer that came first would hide it. A goodbye comes behind all
  // that was sent.
  node.link(0)->close();
  EXPECT_TRUE(link->wait_closed(net::testing::kPatience));
  EXPECT_EQ(n_requests, n_asked);
}

TEST_F(BlobLink, APeerThatVanishesIsDoneWithout) {
  Folder cache_b;
  Rig a(models.str(), "");
  Rig b(models.str(), "");
  ASSERT_TRUE(a.manifest("m.gguf") && b.manifest("m.gguf"));
  Node node_a(net, *a.store, key);
  Node node_b(net, *b.store, key);
  std::atomic<int> n_blobs{0};
  node_a.first = [&](const auto& link, net::Incoming& incoming) {
    if (incoming.header.type != wire::MessageType::kBlobRequest || ++n_blobs < 3) return false;
    link->close();
    return true;
  };
  Rig c("", cache.str());
  const auto tensors = layer_tensors(0, 3);
  const auto lost = peer(node_a);
  const OpenedSlice opened = c.store->open(request(tensors, {lost, peer(node_b)}));
  expect_same_weights(*opened.file, *whole, tensors);

  // Alone it is an error that names it, and what it has sent stays for the next try.
  Folder cache_d;
  n_blobs = 0;
  Rig d("", cache_d.str());
  const std::string text = thrown<NetError>([&] { d.store->open(request(tensors, {lost})); });
  EXPECT_NE(text.find(node_a.address()), std::string::npos) << text;
  EXPECT_EQ(cache_d.names(".part").size(), 1U);
  const std::string gone = node_b.address();
  node_b.end();
  const auto nobody = std::make_shared<PeerSource>(net, patient(key), gone);
  const std::string missing = thrown<IoError>([&] { d.store->open(request(tensors, {nobody})); });
  EXPECT_NE(missing.find(gone), std::string::npos) << missing;
}

TEST_F(BlobLink, SilenceEndsAtTheDeadlineAndCancelAtOnce) {
  Rig a(models.str(), "");
  Node node(net, *a.store, key);
  node.first = [](const auto&, net::Incoming&) { return true; };  // hears and says nothing
  const auto silent = peer(node, 300ms);
  const std::string text =
      thrown<DeadlineError>([&] { silent->manifest(asking(content, "m.gguf"), nullptr); });
  EXPECT_NE(text.find(node.address()), std::string::npos) << text;

  const auto patient_one = peer(node, 60s);
  CancelFlag cancel;
  std::thread presser([&] {
    std::this_thread::sleep_for(100ms);
    cancel.set();
  });
  const auto begin = std::chrono::steady_clock::now();
  wire::BlobRequest blob;
  blob.identity = identity;
  blob.n_bytes = 1;
  thrown<CancelledError>([&] { patient_one->fetch(blob, &cancel); });
  Rig d("", cache.str());
  OpenSlice slice = request(layer_tensors(0, 1), {patient_one});
  slice.cancel = &cancel;
  thrown<CancelledError>([&] { d.store->open(slice); });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  presser.join();
}

TEST_F(BlobLink, RefusalsKeepTheirMeaning) {
  Rig a(models.str(), "");
  Node node(net, *a.store, key);
  const auto source = peer(node);
  wire::Digest unknown = identity;
  unknown[3] ^= 1;
  Content other = content;
  other.identity = unknown;
  other.headers[0] ^= 1;
  EXPECT_FALSE(source->manifest(asking(other, "m.gguf"), nullptr).has_value());
  EXPECT_FALSE(source->manifest(asking({}, "absent.gguf"), nullptr).has_value());
  ASSERT_TRUE(source->manifest(asking({}, "m.gguf"), nullptr).has_value());
  ASSERT_TRUE(source->manifest(asking(content, "m.gguf"), nullptr).has_value());
  wire::BlobRequest blob;
  blob.identity = unknown;
  blob.n_bytes = 1;
  thrown<IoError>([&] { source->fetch(blob, nullptr); });
  blob.identity = identity;
  blob.offset = 1U << 30;
  thrown<NetError>([&] { source->fetch(blob, nullptr); });  // it does not know how to ask
  thrown<NetError>([&] { source->manifest(asking(content, "../m.gguf"), nullptr); });
}

// A store whose disk hangs until it is told otherwise.
class StuckStore final : public WeightStore {
 public:
  OpenedSlice open(const OpenSlice&) override { fail<IoError>("stuck"); }
  Content identify(const std::shared_ptr<const gguf::File>&, const ReadOptions&) override {
    return {};
  }
  void offer(std::shared_ptr<const gguf::File>, const Content&, const std::string&) override {}
  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request) override {
    ++n_begun;
    EXPECT_TRUE(eventually([this] { return released.load(); }));
    wire::Manifest manifest;
    manifest.request = request.request;
    return manifest;
  }
  std::vector<std::uint8_t> read(const wire::BlobRequest&) override { fail<IoError>("stuck"); }
  std::uint64_t bytes_read() const override { return 0; }
  std::atomic<int> n_begun{0};
  std::atomic<bool> released{false};
};

TEST_F(BlobLink, TooManyRequestsAreRefusedNotQueued) {
  StuckStore stuck;
  Node node(net, stuck, std::nullopt);
  net::testing::RawPeer raw(node.address());
  ASSERT_TRUE(raw.greet(net::random_node_id()));
  std::uint64_t n_sent = 0;
  const auto ask = [&](int n) {
    Bytes burst;
    for (int i = 0; i < n; ++i, ++n_sent) {
      wire::ManifestRequest request;
      request.request = n_sent + 1;
      const Bytes frame = net::testing::frame_of(request, n_sent);
      burst.insert(burst.end(), frame.begin(), frame.end());
    }
    ASSERT_TRUE(raw.send(burst));
  };
  ask(1);
  ASSERT_TRUE(eventually([&] { return stuck.n_begun == 1; }));
  ask(100);  // 64 wait behind the first, the others hear so at once
  std::uint64_t answered = 0;
  std::uint64_t refused = 0;
  while (answered + refused < n_sent) {
    const auto frame = raw.receive_frame();
    ASSERT_TRUE(frame.has_value());
    if (const auto* error = std::get_if<wire::ErrorReply>(&frame->message)) {
      EXPECT_EQ(error->kind, wire::ErrorKind::kDeadline);
      EXPECT_GT(error->request, 65U);
      if (++refused == 36) stuck.released = true;
    }
    if (std::holds_alternative<wire::Manifest>(frame->message)) ++answered;
  }
  EXPECT_EQ(answered, 65U);
  EXPECT_EQ(refused, 36U);
}

TEST_F(BlobLink, WhoDoesNotTakeItsBytesHoldsUpNobody) {
  Folder big;
  gguf::Writer writer;
  writer.add_string("general.architecture", "test");
  const std::uint64_t ne[] = {1U << 20, 4};
  writer.add_tensor("w", quant::Qtype::kI8, ne, noise(4U << 20, 3));
  write_file(big / "m.gguf", writer.finish());
  whole = gguf::File::open(big / "m.gguf");
  content = content_of(*whole);
  identity = content.identity;
  Rig a(big.str(), "");
  Node node(net, *a.store, std::nullopt);
  key.reset();
  const auto good = peer(node);
  ASSERT_TRUE(good->manifest(asking(content, "m.gguf"), nullptr).has_value());

  net::testing::RawPeer raw(node.address());
  ASSERT_TRUE(raw.greet(net::random_node_id()));
  wire::BlobRequest blob;
  blob.identity = identity;
  blob.n_bytes = 4U << 20;
  for (std::uint64_t i = 1; i <= 60; ++i) {  // 240 MiB that it never reads
    blob.request = i;
    ASSERT_TRUE(raw.send(net::testing::frame_of(blob, i - 1)));
  }
  const auto slow = node.link(1);
  EXPECT_TRUE(eventually([&] { return slow->queued_bytes() > (8U << 20); }));
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(good->fetch(blob, nullptr).size(), blob.n_bytes);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
  EXPECT_LT(slow->queued_bytes(), 32U << 20);
  EXPECT_FALSE(slow->closed());
}

}  // namespace
}  // namespace moesaic::cluster::testing
