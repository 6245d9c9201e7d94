// A whole cluster in one process: workers on loopback under TLS, a coordinator, and a tiny model in
// a folder that all workers see.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cluster/coordinator/coordinator.h"
#include "cluster/weight_rig.h"
#include "cluster/worker/worker.h"
#include "model/tiny_model.h"

namespace moesaic::cluster::testing {

using namespace std::chrono_literals;

struct RigOptions {
  std::size_t n_workers = 2;
  bool encrypted = true;
  bool local_copies = true;  // else the workers pull from the coordinator
  std::uint64_t memory_bytes = std::uint64_t{1} << 30U;
  std::chrono::milliseconds turn{5};
  std::size_t most_links = 1024;
  std::size_t most_deployments = 128;
  std::string release = "test";  // of the workers; the coordinator's is "test"
};

class ClusterRig {
 public:
  ClusterRig(const model::testing::Recipe& recipe, const RigOptions& options = {})
      : options_(options) {
    const Bytes bytes = model::testing::bytes_of(recipe);
    path_ = folder_ / "tiny.gguf";
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    file_ = gguf::File::open(path_);
    if (options.encrypted) key_ = net::ClusterKey::random();
    for (std::size_t i = 0; i < options.n_workers; ++i) workers_.push_back(make_worker(i, ""));
    connect();
  }

  std::unique_ptr<Worker> make_worker(std::size_t i, const std::string& address) {
    WorkerOptions worker;
    worker.listen = address.empty() ? "127.0.0.1:0" : address;
    worker.key = key_;
    worker.models_dir = options_.local_copies ? folder_.str() : "";
    worker.cache_dir = folder_ / ("cache" + std::to_string(i));
    worker.memory_bytes = options_.memory_bytes;
    worker.threads = 1;
    worker.turn = options_.turn;
    worker.most_links = options_.most_links;
    worker.most_deployments = options_.most_deployments;
    worker.release = options_.release;
    worker.log = [this](const LogEvent& event) {
      const std::scoped_lock lock(log_mutex_);
      log_.push_back(event.event + ": " + event.text);
    };
    return Worker::start(std::move(worker));
  }

  // As after an upgrade: restarted where it was, with the coordinator's release.
  void upgrade_worker(std::size_t i) {
    const std::string address = workers_[i]->address();
    workers_[i].reset();
    options_.release = "test";
    workers_[i] = make_worker(i, address);
    connect();
  }

  void connect() {
    CoordinatorOptions coordinator;
    for (const auto& worker : workers_) coordinator.addresses.push_back(worker->address());
    coordinator.key = key_;
    coordinator.release = "test";
    coordinator_ = Coordinator::connect(coordinator, nullptr);
  }

  // Layers as evenly as they go.
  Plan plan(const model::LoadOptions& load) {
    Plan plan;
    const auto n_layers = model::understand(file_).config.n_layers;
    const auto n = static_cast<std::int64_t>(workers_.size());
    plan.n_ctx = load.n_ctx;
    plan.kv_tokens = load.kv_tokens;
    plan.micro_batch_rows = 16;
    for (std::int64_t i = 0; i < n; ++i) {
      NodePlan node;
      node.address = workers_[static_cast<std::size_t>(i)]->address();
      node.layer_begin = n_layers * i / n;
      node.layer_end = n_layers * (i + 1) / n;
      plan.nodes.push_back(node);
    }
    return plan;
  }

  std::unique_ptr<model::Runner> deploy(DeployOptions options = {}) {
    if (options.load.n_ctx == model::LoadOptions{}.n_ctx) options.load = load_options();
    return coordinator_->deploy(file_, plan(options.load), options);
  }
  static model::LoadOptions load_options() {
    model::LoadOptions load = model::testing::small_options();
    load.n_ctx = 192;
    load.kv_tokens = 1024;
    load.page_tokens = 64;  // as the workers have it
    load.deterministic = true;
    return load;
  }
  std::unique_ptr<model::LocalRunner> local() const {
    return model::LocalRunner::load(file_, load_options());
  }

  Coordinator& coordinator() { return *coordinator_; }
  std::vector<std::unique_ptr<Worker>>& workers() { return workers_; }
  std::shared_ptr<const gguf::File> file() const { return file_; }
  // The first file of a worker's cache with this in its name; empty: there is none.
  std::string cache_file(std::size_t worker, const std::string& part) const {
    const fs::path cache = folder_ / ("cache" + std::to_string(worker));
    for (const auto& entry : fs::directory_iterator(cache)) {
      if (entry.path().filename().string().find(part) != std::string::npos) return entry.path();
    }
    return "";
  }
  std::string log() {
    const std::scoped_lock lock(log_mutex_);
    std::string all;
    for (const std::string& line : log_) all += line + "\n";
    return all;
  }

 private:
  RigOptions options_;
  Folder folder_;
  std::string path_;
  std::shared_ptr<const gguf::File> file_;
  std::optional<net::ClusterKey> key_;
  std::mutex log_mutex_;
  std::vector<std::string> log_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::shared_ptr<Coordinator> coordinator_;
};

// Tokens that a runner generates from a prompt, by run() or by run_ahead().
class Collect final : public model::AheadSink {
 public:
  explicit Collect(std::size_t n, std::size_t enough = SIZE_MAX) : tokens(n), enough_(enough) {}
  bool take(std::size_t sequence, model::SequenceResult result) override {
    tokens[sequence].push_back(result.sampled->token);
    return ++n_ < enough_;
  }
  std::vector<std::vector<std::int32_t>> tokens;

 private:
  std::size_t n_ = 0;
  std::size_t enough_;
};

}  // namespace moesaic::cluster::testing
