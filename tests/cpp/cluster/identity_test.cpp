// Models with equal headers and other weights, in a whole cluster: whose weights answer.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "cluster/cluster_rig.h"
#include "cluster/weights/content.h"
#include "cluster/weights/identify.h"

namespace moesaic::cluster::testing {
namespace {

// --- the tree of digests

class ContentTest : public ::testing::Test {
 protected:
  Folder folder;
  std::shared_ptr<const gguf::File> file = gguf::File::open(write_model(folder));
  UnitDigests units = digests_of(*file);
  Content content = make_content(*file, units);
};

TEST_F(ContentTest, DiffersWhereverAWeightDiffers) {
  EXPECT_TRUE(is_consistent(content));
  for (auto& [unit, digest] : units) {
    digest[31] ^= 1;
    const Content other = make_content(*file, units);
    EXPECT_NE(other.identity, content.identity);
    EXPECT_EQ(other.headers, content.headers);
    EXPECT_EQ(prove_tensor(*file, content, unit.tensor, units), Proof::kOther);
    digest[31] ^= 1;
  }
  EXPECT_EQ(make_content(*file, units).identity, content.identity);
}

TEST_F(ContentTest, APartProvesItself) {
  UnitDigests part;
  for (const auto& [unit, digest] : units) {
    if (unit.tensor >= 3 && unit.tensor <= 5) part[unit] = digest;
  }
  EXPECT_EQ(proven_units(*file, content, part), part);
  UnitDigests spoiled = part;
  spoiled[{5, 1}][0] ^= 1;  // of the experts: they fall, the others stand
  const UnitDigests left = proven_units(*file, content, spoiled);
  EXPECT_EQ(left.size(), 2U);
  EXPECT_FALSE(left.contains({5, 0}));
  spoiled = part;
  spoiled.erase({5, 2});
  EXPECT_EQ(prove_tensor(*file, content, 5, spoiled), Proof::kUnknown);
  EXPECT_EQ(proven_units(*file, content, spoiled).size(), 2U);
  part[{999, 0}] = {};
  part[{5, 99}] = {};
  EXPECT_EQ(proven_units(*file, content, part).size(), units_of(*file, {3, 4, 5}).size());
}

TEST_F(ContentTest, DigestsThatDoNotGiveTheIdentity) {
  Content other = content;
  other.tensors[2][0] ^= 1;
  EXPECT_FALSE(is_consistent(other));
  other = content;
  other.headers[0] ^= 1;
  EXPECT_FALSE(is_consistent(other));
  other = content;
  other.tensors.pop_back();
  EXPECT_FALSE(is_consistent(other));
}

// --- a file on this machine's disk

// The file that was opened is the one that is known, whatever has its name a moment later.
TEST(LocalFileTest, OpensWhileItsNameIsGivenToNewFiles) {
  Folder folder;
  const std::string path = write_model(folder);
  const std::vector<std::uint8_t> bytes =
      model::testing::bytes_of(model::testing::tiny_deepseek2());
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; !stop && i < 10'000; ++i) {
      write_file(folder / "new", bytes);
      std::filesystem::rename(folder / "new", path);
    }
  });
  for (int i = 0; i < 500; ++i) {
    const LocalFile local = open_settled(path);
    EXPECT_EQ(local.states.at(0).inode, file_state(local.file->descriptors().at(0), path).inode);
    if (::testing::Test::HasFailure()) break;
  }
  stop = true;
  writer.join();
}

TEST(LocalFileTest, AnOpenFileThatLostItsNameToAnotherIsNotReadByName) {
  Folder folder;
  const std::string path = write_model(folder);
  const std::shared_ptr<const gguf::File> file = gguf::File::open(path);
  EXPECT_EQ(local_file_of(file).states.size(), 1U);
  std::vector<std::uint8_t> other = model::testing::bytes_of(model::testing::tiny_deepseek2());
  other.back() ^= 1;  // equal headers
  write_file(folder / "new", other);
  std::filesystem::rename(folder / "new", path);
  EXPECT_THROW(local_file_of(file), FormatError);
}

// --- clusters. Files A and B have equal headers.

class Identity : public ::testing::Test {
 protected:
  void SetUp() override {
    a = model::testing::bytes_of(model::testing::tiny_deepseek2());
    b = a;
    const auto file = gguf::File::from_memory(a, "a");
    for (const gguf::TensorInfo& tensor : file->tensors()) {
      for (std::size_t i = 3; i < tensor.n_bytes; i += 20) b[tensor.offset + i] ^= 0x80;  // signs
    }
    write_file(mine / "m.gguf", a);
    answer_a = answer(*model::LocalRunner::load(open_mine(), ClusterRig::load_options()));
    write_file(mine / "b.gguf", b);
    answer_b = answer(
        *model::LocalRunner::load(gguf::File::open(mine / "b.gguf"), ClusterRig::load_options()));
    ASSERT_NE(answer_a, answer_b);
  }
  void TearDown() override {
    coordinator.reset();
    workers.clear();
  }
  std::shared_ptr<const gguf::File> open_mine() { return gguf::File::open(mine / "m.gguf"); }

  static std::vector<float> answer(model::Runner& runner) {
    const model::SequenceId id = runner.open();
    const auto result = model::testing::run_one(
        runner, model::testing::rows(id, 0, {1, 2, 3, 4, 5}, model::Logits::kAll));
    runner.close(id);
    return result.logits;
  }

  // A worker for each folder of copies; "" has none.
  void start(const std::vector<std::string>& copies) {
    for (std::size_t i = 0; i < copies.size(); ++i) {
      WorkerOptions worker;
      worker.listen = "127.0.0.1:0";
      worker.models_dir = copies[i];
      worker.cache_dir = caches / std::to_string(i);
      worker.memory_bytes = std::uint64_t{1} << 30U;
      worker.threads = 1;
      worker.release = "test";
      worker.log = [this](const LogEvent& event) {
        const std::scoped_lock lock(log_mutex);
        log += event.event + ": " + event.text + "\n";
      };
      workers.push_back(Worker::start(std::move(worker)));
    }
    CoordinatorOptions options;
    for (const auto& worker : workers) options.addresses.push_back(worker->address());
    options.release = "test";
    coordinator = Coordinator::connect(options, nullptr);
  }
  std::unique_ptr<model::Runner> deploy(std::shared_ptr<const gguf::File> file,
                                        wire::DigestPolicy digests = wire::DigestPolicy::kFirst) {
    DeployOptions options;
    options.load = ClusterRig::load_options();
    options.digests = digests;
    Plan plan;
    plan.n_ctx = options.load.n_ctx;
    plan.kv_tokens = options.load.kv_tokens;
    plan.micro_batch_rows = 16;
    const auto n = static_cast<std::int64_t>(workers.size());
    const std::int64_t n_layers = model::understand(file).config.n_layers;
    for (std::int64_t i = 0; i < n; ++i) {
      NodePlan node;
      node.address = workers[static_cast<std::size_t>(i)]->address();
      node.layer_begin = n_layers * i / n;
      node.layer_end = n_layers * (i + 1) / n;
      plan.nodes.push_back(node);
    }
    return coordinator->deploy(std::move(file), plan, options);
  }
  bool logged(const std::string& text) {
    const std::scoped_lock lock(log_mutex);
    return log.find(text) != std::string::npos;
  }

  Bytes a;
  Bytes b;
  std::vector<float> answer_a;
  std::vector<float> answer_b;
  Folder mine;  // of the coordinator's machine
  Folder first;
  Folder second;
  Folder caches;
  std::mutex log_mutex;
  std::string log;
  std::vector<std::unique_ptr<Worker>> workers;
  std::shared_ptr<Coordinator> coordinator;
};

TEST_F(Identity, HeldAndCachedSlicesOfOtherWeightsAreNotTaken) {
  start({"", ""});
  EXPECT_EQ(answer(*deploy(open_mine())), answer_a);
  write_file(mine / "new", b);
  fs::rename(mine / "new", mine / "m.gguf");
  for (const auto policy :
       {wire::DigestPolicy::kFirst, wire::DigestPolicy::kAlways, wire::DigestPolicy::kNever}) {
    const auto runner = deploy(open_mine(), policy);
    EXPECT_EQ(answer(*runner), answer_b);
  }
  workers.clear();  // others, with the caches of the first
  coordinator.reset();
  start({"", ""});
  EXPECT_EQ(answer(*deploy(open_mine())), answer_b);
  EXPECT_TRUE(logged("(cache, 0 B read)")) << log;
  write_file(mine / "m.gguf", a);
  EXPECT_EQ(answer(*deploy(open_mine())), answer_a);
}

TEST_F(Identity, CopiesThatDifferAreNamed) {
  write_file(first / "m.gguf", a);
  write_file(second / "m.gguf", b);
  start({first.str(), second.str()});
  // By name nobody can say which one is meant.
  const std::string text =
      thrown<FormatError>([&] { deploy(coordinator->remote_file("m.gguf", nullptr)); });
  EXPECT_NE(text.find(workers[0]->address()), std::string::npos) << text;
  EXPECT_NE(text.find(workers[1]->address()), std::string::npos) << text;
  // The file of this machine decides; the worker that has another pulls the right one.
  EXPECT_EQ(answer(*deploy(open_mine())), answer_a);
  EXPECT_TRUE(logged("other weights under equal headers")) << log;
  EXPECT_TRUE(logged(second / "m.gguf")) << log;
  write_file(mine / "m.gguf", b);
  EXPECT_EQ(answer(*deploy(open_mine(), wire::DigestPolicy::kAlways)), answer_b);
  // Made equal, they are one model again.
  write_file(first / "m.gguf", b);
  EXPECT_EQ(answer(*deploy(coordinator->remote_file("m.gguf", nullptr))), answer_b);
}

TEST_F(Identity, AnOwnerMayLendToOneThatHasOther) {
  // The coordinator has no weights, one worker has A, the other none: then B under A's name.
  write_file(first / "m.gguf", a);
  start({first.str(), second.str()});
  const auto file = coordinator->remote_file("m.gguf", nullptr);
  EXPECT_EQ(coordinator->fingerprint(file).size(), 64U);
  EXPECT_EQ(answer(*deploy(file)), answer_a);
  fs::remove_all(caches.str());
  write_file(second / "m.gguf", b);
  EXPECT_EQ(answer(*deploy(file, wire::DigestPolicy::kAlways)), answer_a);
  EXPECT_TRUE(logged("other weights under equal headers")) << log;
}

TEST_F(Identity, AFileThatChangesInPlaceIsNoticed) {
  write_file(first / "m.gguf", a);
  start({first.str()});
  const auto runner = deploy(open_mine());
  EXPECT_EQ(answer(*runner), answer_a);
  const fs::file_time_type time = fs::last_write_time(first / "m.gguf");
  write_file(first / "m.gguf", b);
  fs::last_write_time(first / "m.gguf", time);
  std::string text;
  try {
    answer(*runner);
    ADD_FAILURE() << "it answered";
  } catch (const Error& error) {
    text = error.what();
  }
  EXPECT_NE(text.find(first / "m.gguf"), std::string::npos) << text;
  // What is held is not used again: the copy is another model now, and A is pulled.
  EXPECT_EQ(answer(*deploy(open_mine())), answer_a);
  EXPECT_TRUE(logged("held are not used again")) << log;
  write_file(mine / "m.gguf", b);
  EXPECT_EQ(answer(*deploy(open_mine())), answer_b);
}

TEST_F(Identity, AlwaysReadsWhatIsHeld) {
  write_file(first / "m.gguf", a);
  start({first.str()});
  EXPECT_EQ(answer(*deploy(open_mine())), answer_a);
  const auto n_read = [&] { return coordinator->nodes(false, nullptr)[0].bytes_read_weights; };
  const std::uint64_t once = n_read();
  EXPECT_GT(once, 0U);
  const auto held = deploy(open_mine());
  EXPECT_EQ(n_read(), once);
  const auto shared = deploy(open_mine(), wire::DigestPolicy::kAlways);  // used by another
  EXPECT_EQ(n_read(), 2 * once);
  EXPECT_EQ(answer(*shared), answer_a);
  EXPECT_EQ(answer(*held), answer_a);
}

}  // namespace
}  // namespace moesaic::cluster::testing
