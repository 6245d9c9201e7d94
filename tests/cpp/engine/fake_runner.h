// A Runner without a model: the logits of a row are a hash of all tokens up to it, so that a wrong
// position, a wrong prefix or a mixed-up sequence shows in every value. Pages are counted, shared
// and copied as a real pool does.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "model/run/sampler.h"

namespace moesaic::engine {

inline float fake_logit(std::uint64_t hash, std::int64_t token) {
  std::uint64_t x = hash ^ (0x9E3779B97F4A7C15ULL * static_cast<std::uint64_t>(token + 1));
  x ^= x >> 31U;
  x *= 0xBF58476D1CE4E5B9ULL;
  x ^= x >> 29U;
  return static_cast<float>(x % 4096) / 512.0F;
}

inline std::uint64_t fake_hash(std::uint64_t before, std::int32_t token) {
  return (before ^ static_cast<std::uint64_t>(token + 1)) * 0x100000001B3ULL + 77;
}

// Logits (vocab) behind `tokens`.
inline std::vector<float> fake_logits(const std::vector<std::int32_t>& tokens, std::int64_t vocab) {
  std::uint64_t hash = 1469598103934665603ULL;
  for (const std::int32_t token : tokens) hash = fake_hash(hash, token);
  std::vector<float> logits;
  for (std::int64_t i = 0; i < vocab; ++i) logits.push_back(fake_logit(hash, i));
  return logits;
}

struct FakeOptions {
  std::int64_t vocab = 97;
  std::int64_t n_ctx = 512;
  std::int64_t kv_tokens = 2048;
  std::int64_t page_tokens = 16;
  std::int64_t max_step_rows = 64;
  std::chrono::microseconds row_time{0};
  std::int32_t poison_token = -1;  // a step with it throws BackendError
  std::int32_t nan_token = -1;     // a row with it has a NaN logit
  bool runs_ahead = false;
  std::int64_t lost_after_rows = -1;  // then every step throws WorkerLost
  std::int64_t late_after_rows = -1;  // then every step throws DeadlineError
};

struct StepRecord {
  struct Part {
    model::SequenceId sequence;
    std::int64_t start;
    std::int64_t n_rows;
    bool decode;
  };
  std::vector<Part> parts;
  std::vector<std::string> capture;
};

// Shared with the test, since the engine owns the Runner.
struct FakeLog {
  std::mutex mutex;
  std::vector<StepRecord> steps;
  std::atomic<int> open_sequences{0};
  std::atomic<std::int64_t> pages_used{0};
  std::atomic<int> cancelled_steps{0};
  std::atomic<std::int64_t> rows_run{0};
  std::atomic<std::int64_t> ahead_rounds{0};
  std::atomic<bool> destroyed{false};
  std::vector<StepRecord> copy() {
    const std::scoped_lock lock(mutex);
    return steps;
  }
};

class FakeRunner : public model::Runner {
 public:
  FakeRunner(const FakeOptions& options, std::shared_ptr<FakeLog> log)
      : options_(options), log_(std::move(log)) {
    config_.arch = "fake";
    config_.vocab = options.vocab;
    config_.n_layers = 2;
    config_.n_kv_heads = 1;
    config_.d_head_k = 2;
    config_.d_head_v = 2;
    refs_.assign(static_cast<std::size_t>(options.kv_tokens / options.page_tokens), 0);
  }
  ~FakeRunner() override { log_->destroyed = true; }

  const model::Config& config() const override { return config_; }
  model::MemoryNeed memory() const override {
    model::MemoryNeed need;
    need.kv_bytes = static_cast<std::uint64_t>(options_.kv_tokens) * 16;
    return need;
  }
  std::int64_t n_ctx() const override { return options_.n_ctx; }
  std::int64_t kv_tokens() const override { return options_.kv_tokens; }
  std::int64_t kv_tokens_free() const override {
    std::int64_t n = 0;
    for (const int refs : refs_) n += refs == 0 ? 1 : 0;
    return n * options_.page_tokens;
  }
  std::int64_t page_tokens() const override { return options_.page_tokens; }
  std::int64_t max_step_rows() const override { return options_.max_step_rows; }
  std::string identity() const override { return "fake-1"; }
  std::vector<std::string> capture_names() const override { return {"embed", "ids"}; }

  model::SequenceId open() override {
    check_thread();
    sequences_[++last_id_] = {};
    ++log_->open_sequences;
    return last_id_;
  }
  void close(model::SequenceId id) override {
    check_thread();
    Sequence& sequence = at(id);
    drop_pages(sequence, 0);
    sequences_.erase(id);
    --log_->open_sequences;
  }
  std::int64_t length(model::SequenceId id) const override {
    return static_cast<std::int64_t>(sequences_.at(id).tokens.size());
  }
  void truncate(model::SequenceId id, std::int64_t n) override {
    check_thread();
    Sequence& sequence = at(id);
    if (n >= static_cast<std::int64_t>(sequence.tokens.size())) return;
    sequence.tokens.resize(static_cast<std::size_t>(n));
    drop_pages(sequence, pages(n));
  }
  model::SequenceId fork(model::SequenceId id, std::int64_t n) override {
    check_thread();
    const Sequence parent = at(id);
    if (n > static_cast<std::int64_t>(parent.tokens.size())) {
      fail<InternalError>("fork past the end");
    }
    Sequence child;
    child.tokens.assign(parent.tokens.begin(), parent.tokens.begin() + n);
    for (std::int64_t i = 0; i < n / options_.page_tokens; ++i) {
      child.pages.push_back(parent.pages[static_cast<std::size_t>(i)]);
      ++refs_[static_cast<std::size_t>(child.pages.back())];
    }
    if (n % options_.page_tokens != 0) child.pages.push_back(take_page());
    sequences_[++last_id_] = child;
    ++log_->open_sequences;
    return last_id_;
  }
  std::int64_t pages_needed(model::SequenceId id, std::int64_t start,
                            std::int64_t n_rows) const override {
    const Sequence& sequence = sequences_.at(id);
    const std::int64_t held =
        std::min(static_cast<std::int64_t>(sequence.pages.size()), pages(start));
    std::int64_t need = std::max<std::int64_t>(0, pages(start + n_rows) - held);
    if (n_rows > 0 && start % options_.page_tokens != 0 &&
        refs_[static_cast<std::size_t>(
            sequence.pages[static_cast<std::size_t>(start / options_.page_tokens)])] > 1) {
      ++need;
    }
    return need;
  }
  std::uint64_t kv_token_bytes() const override { return 16; }
  std::vector<std::uint8_t> save(model::SequenceId id, const CancelFlag*) override {
    std::vector<std::uint8_t> bytes;
    for (const std::int32_t token : at(id).tokens) {
      for (int i = 0; i < 16; ++i) bytes.push_back(static_cast<std::uint8_t>(token + i));
    }
    return bytes;
  }
  model::SequenceId load(std::span<const std::uint8_t> bytes, std::span<const std::int32_t> tokens,
                         const CancelFlag*) override {
    const auto n = static_cast<std::int64_t>(tokens.size());
    check_thread();
    if (static_cast<std::int64_t>(bytes.size()) != n * 16) fail<FormatError>("wrong size");
    Sequence sequence;
    for (std::int64_t i = 0; i < n; ++i) {
      sequence.tokens.push_back(bytes[static_cast<std::size_t>(i * 16)]);
    }
    for (std::int64_t i = 0; i < pages(n); ++i) sequence.pages.push_back(take_page());
    sequences_[++last_id_] = sequence;
    ++log_->open_sequences;
    return last_id_;
  }

  model::StepResult run(const model::Step& step) override {
    check_thread();
    model::StepResult result;
    StepRecord record;
    record.capture = step.capture;
    std::int64_t total = 0;
    std::set<model::SequenceId> seen;
    for (const model::SequenceStep& part : step.sequences) {
      EXPECT_TRUE(seen.insert(part.sequence).second);
      EXPECT_LE(part.start, length(part.sequence));
      EXPECT_FALSE(part.tokens.empty());
      total += static_cast<std::int64_t>(part.tokens.size());
      record.parts.push_back({part.sequence, part.start,
                              static_cast<std::int64_t>(part.tokens.size()),
                              part.sampler != nullptr && part.tokens.size() == 1});
    }
    EXPECT_LE(total, options_.max_step_rows);
    {
      const std::scoped_lock lock(log_->mutex);
      log_->steps.push_back(record);
    }
    if (options_.lost_after_rows >= 0 && log_->rows_run >= options_.lost_after_rows) {
      throw WorkerLost("a fake worker is lost", "10.0.0.7:9777", {2, 3}, {});
    }
    if (options_.late_after_rows >= 0 && log_->rows_run >= options_.late_after_rows) {
      fail<DeadlineError>("a fake worker is late");
    }
    for (const model::SequenceStep& part : step.sequences) {
      for (const std::int32_t token : part.tokens) {
        if (token == options_.poison_token) fail<BackendError>("poison");
      }
    }
    for (const model::SequenceStep& part : step.sequences) {
      result.sequences.push_back(run_part(part, step));
    }
    return result;
  }

  bool runs_ahead() const override { return options_.runs_ahead; }
  void run_ahead(const model::Step& step, std::span<const model::Ahead> ahead,
                 model::AheadSink& sink) override {
    ASSERT_EQ(step.sequences.size(), ahead.size());
    model::Step next = step;
    std::vector<std::size_t> alive;
    for (std::size_t i = 0; i < ahead.size(); ++i) alive.push_back(i);
    for (std::int64_t round = 1; !alive.empty(); ++round) {
      model::StepResult result = run(next);
      ++log_->ahead_rounds;
      model::Step after;
      after.cancel = step.cancel;
      std::vector<std::size_t> still;
      for (std::size_t k = 0; k < alive.size(); ++k) {
        const std::size_t i = alive[k];
        const std::int32_t token = result.sequences[k].sampled->token;
        const auto& stops = ahead[i].stop_tokens;
        const bool ends = round >= ahead[i].max_tokens ||
                          std::find(stops.begin(), stops.end(), token) != stops.end();
        if (!ends) {
          model::SequenceStep part = next.sequences[k];
          part.start += 1;
          part.tokens = {token};
          part.history.push_back(token);
          after.sequences.push_back(part);
          still.push_back(i);
        }
        if (!sink.take(i, std::move(result.sequences[k]))) return;
      }
      next = std::move(after);
      alive = std::move(still);
    }
  }

 private:
  struct Sequence {
    std::vector<std::int32_t> tokens;
    std::vector<int> pages;
  };

  model::SequenceResult run_part(const model::SequenceStep& part, const model::Step& step) {
    Sequence& sequence = at(part.sequence);
    truncate(part.sequence, part.start);
    const auto n = static_cast<std::int64_t>(part.tokens.size());
    if (part.start % options_.page_tokens != 0) {
      int& page = sequence.pages[static_cast<std::size_t>(part.start / options_.page_tokens)];
      if (refs_[static_cast<std::size_t>(page)] > 1) {
        --refs_[static_cast<std::size_t>(page)];
        page = take_page();
      }
    }
    while (static_cast<std::int64_t>(sequence.pages.size()) < pages(part.start + n)) {
      sequence.pages.push_back(take_page());
    }
    std::uint64_t hash = 1469598103934665603ULL;
    for (const std::int32_t token : sequence.tokens) hash = fake_hash(hash, token);
    model::SequenceResult result;
    model::Captured embed{"embed", n, 2, {}, {}};
    model::Captured ids{"ids", n, 1, {}, {}};
    std::vector<float> row;
    for (std::int64_t i = 0; i < n; ++i) {
      if (step.cancel != nullptr && step.cancel->is_set()) {
        ++log_->cancelled_steps;
        step.cancel->check();
      }
      if (options_.row_time.count() > 0) std::this_thread::sleep_for(options_.row_time);
      ++log_->rows_run;
      const std::int32_t token = part.tokens[static_cast<std::size_t>(i)];
      sequence.tokens.push_back(token);
      hash = fake_hash(hash, token);
      row.clear();
      for (std::int64_t v = 0; v < options_.vocab; ++v) row.push_back(fake_logit(hash, v));
      if (token == options_.nan_token) row[3] = std::numeric_limits<float>::quiet_NaN();
      if (part.logits == model::Logits::kAll ||
          (part.logits == model::Logits::kLast && i + 1 == n)) {
        result.logits.insert(result.logits.end(), row.begin(), row.end());
      }
      for (const model::Target& target : part.targets) {
        if (target.row == i) result.targets.push_back(model::score_target(row, target.token));
      }
      embed.values.push_back(static_cast<float>(token));
      embed.values.push_back(static_cast<float>(part.start + i));
      ids.ids.push_back(token);
    }
    if (part.sampler != nullptr) {
      result.sampled = model::sample(row, *part.sampler, part.start + n, part.history);
    }
    if (part.capture) {
      for (const std::string& name : step.capture) {
        result.captures.push_back(name == "embed" ? embed : ids);
      }
    }
    return result;
  }

  std::int64_t pages(std::int64_t rows) const {
    return (rows + options_.page_tokens - 1) / options_.page_tokens;
  }
  int take_page() {
    for (std::size_t i = 0; i < refs_.size(); ++i) {
      if (refs_[i] == 0) {
        refs_[i] = 1;
        ++log_->pages_used;
        return static_cast<int>(i);
      }
    }
    throw OutOfMemoryError("the fake pool is empty", 1, 0);
  }
  void drop_pages(Sequence& sequence, std::int64_t keep) {
    while (static_cast<std::int64_t>(sequence.pages.size()) > keep) {
      if (--refs_[static_cast<std::size_t>(sequence.pages.back())] == 0) --log_->pages_used;
      sequence.pages.pop_back();
    }
  }
  Sequence& at(model::SequenceId id) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) fail<InternalError>("unknown sequence ", id);
    return found->second;
  }
  void check_thread() {
    if (thread_ == std::thread::id()) thread_ = std::this_thread::get_id();
    EXPECT_EQ(thread_, std::this_thread::get_id()) << "the Runner has one caller";
  }

  FakeOptions options_;
  std::shared_ptr<FakeLog> log_;
  model::Config config_;
  std::vector<int> refs_;
  std::map<model::SequenceId, Sequence> sequences_;
  model::SequenceId last_id_ = 0;
  std::thread::id thread_;
};

}  // namespace moesaic::engine
