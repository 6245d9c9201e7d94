// The CPU backend: the operations of backend.h over the kernels' table, cut over a team of threads.
// What an operation writes never depends on the number of threads: elements are whole sums made by
// one kernel call each, and attention's chunks are joined in a fixed order.
// Files: cpu_backend.cpp (memory, plan), weights.cpp, rows.cpp, matmul.cpp, experts.cpp,
// attention.cpp, attention_mla.cpp, kv.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/matmul.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/storage.h"
#include "base/thread_pool.h"
#include "kernels/table.h"

namespace moesaic::backend::cpu {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int n_threads);
  DeviceInfo info() const override;

  std::unique_ptr<Buffer> allocate(std::size_t n_bytes) override;
  void upload(Buffer& to, std::size_t offset_bytes, const void* from, std::size_t n_bytes) override;
  void download(const Buffer& from, std::size_t offset_bytes, void* to,
                std::size_t n_bytes) override;
  void synchronize() override {}
  void set_cancel(const CancelFlag* cancel) override { cancel_ = cancel; }

  std::unique_ptr<Weight> load(const WeightSource& source) override;
  std::unique_ptr<Weight> make_weight(quant::Qtype type, std::int64_t n_experts, std::int64_t rows,
                                      std::int64_t cols, std::span<const float> values) override;
  void prefault(const Weight& weight) override;

  void embed(const Weight& table, std::span<const std::int32_t> tokens, const Mat& out) override;
  void copy(const Mat& x, const Mat& out) override;
  void gather_rows(const Mat& x, std::span<const std::int32_t> rows, const Mat& out) override;
  void add(const Mat& x, const Mat& y, const Mat& out) override;
  void rms_norm(const Mat& x, const Weight* weight, float eps, const Mat& out) override;
  void rope(const Mat& x, std::int64_t d_head, std::int64_t rot_begin, const RopeSpec& spec,
            std::span<const std::int32_t> positions) override;
  void gated_activation(const Mat& gate, const Mat& up, const ActivationSpec& spec,
                        const Mat& out) override;

  void matmul(const Mat& x, std::span<const MatmulTarget> targets) override;
  void matmul_heads(const Mat& x, std::int64_t x_head_stride, const Weight& weight, const Mat& out,
                    std::int64_t out_head_stride) override;

  void route(const Mat& logits, const RouterSpec& spec, const Routing& out) override;
  void grouped_matmul(const Mat& x, GroupedInput input, const Routing& routing,
                      std::span<const MatmulTarget> targets) override;
  void combine(const Mat& x, const Routing& routing, const Mat* base, const Mat& out) override;

  std::unique_ptr<KvStore> make_kv(const KvSpec& spec) override;
  std::size_t kv_page_bytes(const KvSpec& spec) const override;
  std::size_t kv_kept_bytes(const KvSpec& spec) const override;
  std::optional<KvOverflow> kv_write(KvStore& kv, std::int64_t layer,
                                     std::span<const SequenceRows> sequences, const Mat& k,
                                     const Mat* v) override;
  void kv_copy_page(KvStore& kv, std::int32_t from, std::int32_t to) override;
  std::size_t kv_row_bytes(const KvSpec& spec) const override;
  void kv_read(const KvStore& kv, std::int64_t layer, std::span<const std::int32_t> pages,
               std::int64_t begin, std::int64_t end, std::uint8_t* out) override;
  void kv_restore(KvStore& kv, std::int64_t layer, std::span<const std::int32_t> pages,
                  std::int64_t begin, std::int64_t end, const std::uint8_t* in) override;
  void kv_release(KvStore& kv, std::span<const std::int32_t> pages) override;

  void attention(const KvStore& kv, std::int64_t layer, const AttentionSpec& spec,
                 std::span<const SequenceRows> sequences, const Mat& q, const Mat& out) override;
  void attention_decompressed(const KvStore& kv, std::int64_t layer, const AttentionSpec& spec,
                              std::span<const SequenceRows> sequences, const Weight& w_k,
                              const Weight& w_v, const Mat& q, const Mat& out) override;

  std::size_t scratch_bytes(const ScratchSpec& spec) const override;
  void reserve(const ScratchSpec& spec) override;

 private:
  friend class MatmulRun;
  friend class DecompressedRun;
  // Calls work(member, n_members) on the whole team, or on the caller alone, (0, 1), when the work
  // is too small to be worth the hand-over. No allocation: the pool's std::function holds one
  // reference.
  template <typename Work>
  void parallel(bool whole_team, Work&& work) {
    if (!whole_team || pool_.size() == 1) {
      work(0, 1);
    } else {
      pool_.run([&work, this](int member) { work(member, pool_.size()); });
    }
  }
  // Calls work(begin, end) on even cuts of [0, n) at multiples of grain.
  template <typename Work>
  void parallel_for(std::int64_t n, std::int64_t grain, bool whole_team, Work&& work) {
    parallel(whole_team, [&](int member, int n_members) {
      const std::int64_t n_grains = (n + grain - 1) / grain;
      const std::int64_t begin = n_grains * member / n_members * grain;
      const std::int64_t end = std::min(n, n_grains * (member + 1) / n_members * grain);
      if (begin < end) work(begin, end);
    });
  }
  void check_cancel() const {
    if (cancel_ != nullptr) cancel_->check();
  }
  // The next number of [.., end) that no member has taken, or -1. reset_claims() comes before the
  // job.
  std::int64_t claim(std::int64_t end);
  void reset_claims() { next_.store(0, std::memory_order_relaxed); }
  bool keeps_bf16(const KvSpec& spec) const {
    return !spec.kept.exact && table_.attention_bf16 != nullptr;
  }
  void barrier(int n_members) {
    if (n_members > 1) pool_.barrier();
  }

  Arena shared_arena(const char* op) { return {scratch_.data(), plan_.shared_bytes, op}; }
  Arena member_arena(int member, const char* op) {
    return {scratch_.data() + plan_.shared_bytes +
                static_cast<std::size_t>(member) * plan_.member_bytes,
            scratch_.size() == 0 ? 0 : plan_.member_bytes, op};
  }

  const float* cos_sin_table(const RopeSpec& spec, std::span<const std::int32_t> positions);
  void attention_by_items(const AttentionCall& call, bool whole_team);
  void attention_by_chunks(const AttentionCall& call);

  const kernels::Table& table_;
  ThreadPool pool_;
  const CancelFlag* cancel_ = nullptr;
  alignas(64) std::atomic<std::int64_t> next_{0};

  ScratchSpec reserved_;
  ScratchPlan plan_;
  AlignedBuffer scratch_;
  MatmulLists lists_;
  std::vector<AttentionItem> items_;

  // cos and sin of the last call's positions: q and k of every layer ask for the same ones.
  struct RopeTable {
    RopeSpec spec;
    std::vector<std::int32_t> positions;
    std::vector<float> cos_sin;  // (n, n_rot / 2, 2)
  };
  RopeTable rope_tables_[2];
  int rope_last_ = 0;
};

}  // namespace moesaic::backend::cpu
