// The Runner whose layers are on other machines. Keeps, for every sequence, its tokens and a mirror
// of its pages: enough to answer the engine at once, and to bring a sequence back when workers were
// lost (its tokens are replayed, with the same sharing of pages). Steps are cut into micro-batches
// that fill the pipeline; decode goes round the ring by itself (run_ahead).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cluster/coordinator/coordinator.h"
#include "cluster/coordinator/ring.h"
#include "cluster/coordinator/step_assembly.h"
#include "cluster/step/micro_batches.h"
#include "model/arch/model_file.h"
#include "model/runner.h"
#include "model/state/kv_pages.h"

namespace moesaic::cluster {

// What a new ring is made for.
struct RemakeQuery {
  const CancelFlag* cancel = nullptr;
  std::vector<std::string> lost;  // addresses of the workers whose loss it is
  bool again = false;             // without those that are lost it could not be made
  std::chrono::milliseconds patience{0};
};

struct RunnerSetup {
  model::ModelFile model;
  model::LoadOptions load;  // kv_tokens as planned; max_step_rows unused
  std::int64_t micro_batch_rows = 0;
  BatchCost batch_cost{};
  std::uint32_t payload_limit = 0;
  OnLoss on_loss = OnLoss::kRaise;
  std::chrono::milliseconds wait_for_worker{600000};
  std::chrono::milliseconds step_deadline{10000};  // a stage computes nothing for so long: lost
  // A new ring, after a loss: on the same nodes, or (replan) on those that answer. Throws
  // when it cannot be made now.
  std::function<std::unique_ptr<Ring>(const RemakeQuery& query)> remake;
  NewsSink news;  // may be empty
};

class ClusterRunner final : public model::Runner {
 public:
  ClusterRunner(RunnerSetup setup, std::unique_ptr<Ring> ring);

  const model::Config& config() const override { return setup_.model.config; }
  model::MemoryNeed memory() const override { return memory_; }
  std::uint64_t kv_token_bytes() const override {
    return kv_row_bytes_ * static_cast<std::uint64_t>(config().n_layers);
  }
  std::int64_t n_ctx() const override { return setup_.load.n_ctx; }
  std::int64_t kv_tokens() const override { return pages_.n_pages() * pages_.page_tokens(); }
  std::int64_t kv_tokens_free() const override { return pages_.n_free() * pages_.page_tokens(); }
  std::int64_t page_tokens() const override { return pages_.page_tokens(); }
  std::int64_t max_step_rows() const override { return max_step_rows_; }

  model::SequenceId open() override;
  void close(model::SequenceId sequence) override;
  std::int64_t length(model::SequenceId sequence) const override;
  void truncate(model::SequenceId sequence, std::int64_t n_tokens) override;
  model::SequenceId fork(model::SequenceId sequence, std::int64_t n_tokens) override;
  std::int64_t pages_needed(model::SequenceId sequence, std::int64_t start,
                            std::int64_t n_rows) const override;
  std::vector<std::uint8_t> save(model::SequenceId sequence, const CancelFlag* cancel) override;
  model::SequenceId load(std::span<const std::uint8_t> bytes, std::span<const std::int32_t> tokens,
                         const CancelFlag* cancel) override;
  std::string identity() const override;
  std::vector<std::string> capture_names() const override;

  model::StepResult run(const model::Step& step) override;
  bool runs_ahead() const override { return true; }
  void run_ahead(const model::Step& step, std::span<const model::Ahead> ahead,
                 model::AheadSink& sink) override;

 private:
  struct Sequence {
    std::vector<std::int32_t> tokens;  // of the rows that the mirror counts
    bool is_there = true;              // the workers hold these rows
  };
  struct Decoding {         // one sequence of a run ahead
    std::size_t index = 0;  // in the step
    model::SequenceStep step;
    std::int64_t left = 0;                  // tokens still to be sampled
    std::vector<std::int32_t> stop_tokens;  // each once, sorted
    bool alive = true;
  };
  struct Tries {              // of one call's work
    std::int64_t best = 0;    // how far one of them came
    std::int64_t rows = 0;    // how far this one has come
    int losses_in_a_row = 0;  // none of which came any further
  };

  Sequence& at(model::SequenceId id);
  // Does the work, again from its start on a new ring when a worker is lost and on_loss says so.
  // Each loss has a patience of its own. Work that ends a worker each time is given up.
  void with_ring(const CancelFlag* cancel, const std::function<void()>& work);
  void note_loss(const WorkerLost& lost);
  void recover(const CancelFlag* cancel);
  [[noreturn]] void give_up(const std::string& why);
  std::string advice() const;
  void say(const char* what, const std::string& text, double done = 0, double total = 0) const;
  void tell(const wire::KvOp& op);
  void bring_back(model::SequenceId id, std::int64_t n_tokens, const CancelFlag* cancel);
  void bring_back_all(const model::Step& step, const CancelFlag* cancel);
  void claim(std::span<const model::SequenceStep> sequences);
  void commit(const model::SequenceStep& step);
  CutOptions cut_options(std::span<const std::size_t> field_bytes, const model::Step& step) const;
  model::StepResult dispatch(const model::Step& step, const CancelFlag* cancel);
  bool decode(std::vector<Decoding>& sequences, model::AheadSink& sink, const CancelFlag* cancel);
  Ring::Event wait(const CancelFlag* cancel);
  std::vector<std::uint8_t> read_rows(model::SequenceId sequence, std::int64_t n_tokens,
                                      const CancelFlag* cancel);
  void write_rows(model::SequenceId sequence, std::span<const std::uint8_t> bytes,
                  std::int64_t n_tokens, const CancelFlag* cancel);

  RunnerSetup setup_;
  std::unique_ptr<Ring> ring_;  // null after a loss, until a call has made it anew
  std::unique_ptr<WorkerLost> lost_;
  Tries tries_;
  model::MemoryNeed memory_;
  std::int64_t max_step_rows_;
  std::size_t kv_row_bytes_;  // of one layer
  model::KvPages pages_;      // the mirror
  std::unordered_map<model::SequenceId, Sequence> sequences_;
  std::uint64_t next_id_ = 1;  // of wire steps and requests
  mutable std::string identity_;
};

}  // namespace moesaic::cluster
