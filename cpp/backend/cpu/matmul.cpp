// The matmul engine: plan (blocks, waves, tasks), prepare, pack, compute. Few columns (decode): one
// even cut by bytes, one sequential stream of weights per member. Many (prefill): members claim
// pieces of rows, so that a busy core does not hold the others up.
#include "backend/cpu/matmul.h"

#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"

namespace moesaic::backend::cpu {
namespace {

// Below this cost (bytes of weights, about), waking the team takes longer than the work.
constexpr std::int64_t kTeamFromCost = 32 << 10;
// Input floats that the caller prepares alone.
constexpr std::int64_t kTeamFromFloats = 16 << 10;
// Multiply-adds between two looks at the cancel flag: below a millisecond with vector kernels, some
// 20 ms with the generic ones.
constexpr std::int64_t kPieceMacs = std::int64_t{32} << 20;
// Cuts fall on multiples of this, so that many-row kernels get whole panels.
constexpr std::int64_t kRowGrain = 32;

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return div_up(a, b) * b; }

}  // namespace

void MatmulLists::reserve(std::int64_t n_columns) {
  // Groups are experts or heads. A model with more of them than this grows the lists once.
  constexpr std::size_t kGroups = 1024;
  const std::size_t n = static_cast<std::size_t>(std::max<std::int64_t>(n_columns, 1));
  columns.reserve(n);
  groups.reserve(kGroups);
  blocks.reserve(n / kBlockCols + kGroups);
  tasks.reserve(2 * kGroups);
  waves.reserve(64);
  counts.reserve(kGroups + 1);
}

MatmulRun::MatmulRun(CpuBackend& backend, const char* op, std::int64_t k)
    : backend_(backend), op_(op), k_(k) {}

void MatmulRun::add(const MatmulOutput& output) {
  if (n_targets_ == kMaxTargets) {
    fail<InternalError>("[cpu.", op_, "] more than ", kMaxTargets, " targets");
  }
  const CpuWeight& weight = *output.weight;
  const kernels::MatmulKernel& kernel =
      backend_.table_.matmul[static_cast<std::size_t>(weight.type())];
  if (kernel.few == nullptr) {
    fail<InternalError>("[cpu.", op_, "] no kernel for type ", quant::traits(weight.type()).name);
  }
  int f = 0;
  while (f < n_formats_ && formats_[static_cast<std::size_t>(f)].format != kernel.act) ++f;
  Format& format = formats_[static_cast<std::size_t>(f)];
  if (f == n_formats_) {
    format = {kernel.act, kernels::act_row_bytes(kernel.act, k_),
              std::numeric_limits<std::int64_t>::max(), nullptr};
    ++n_formats_;
  }
  if (kernel.many != nullptr) {
    format.many_from = std::min(format.many_from, std::max<std::int64_t>(kernel.many_from, 1));
  }
  targets_[static_cast<std::size_t>(n_targets_++)] = {output, &kernel, f};
}

std::int64_t MatmulRun::max_input_rows() const {
  std::size_t row_bytes = 0;
  for (int f = 0; f < n_formats_; ++f) {
    row_bytes += formats_[static_cast<std::size_t>(f)].row_bytes;
  }
  const std::size_t room =
      backend_.plan_.acts_bytes - std::min(backend_.plan_.acts_bytes, kMaxFormats * kAlign);
  const std::int64_t n_rows = static_cast<std::int64_t>(room / std::max<std::size_t>(row_bytes, 1));
  if (n_rows < 1) {
    fail<InternalError>("[cpu.", op_, "] scratch: a prepared row of ", row_bytes,
                        " bytes does not fit the ", backend_.plan_.acts_bytes,
                        " planned; reserve() was told of shorter rows");
  }
  return n_rows;
}

void MatmulRun::run(const MatmulInput& input) {
  MatmulLists& lists = backend_.lists_;
  Arena arena = backend_.shared_arena(op_);
  for (int f = 0; f < n_formats_; ++f) {
    Format& format = formats_[static_cast<std::size_t>(f)];
    format.rows =
        arena.take<std::uint8_t>(static_cast<std::int64_t>(format.row_bytes) * input.n_rows);
  }
  packs_ = arena.take<std::uint8_t>(0);
  plan();
  std::int64_t cost = 0;
  for (const MatmulWave& wave : lists.waves) cost += wave.cost;
  const bool alone_prepares = input.n_rows * k_ <= kTeamFromFloats;
  if (alone_prepares) prepare(input, 0, input.n_rows);
  backend_.reset_claims();
  backend_.parallel(cost >= kTeamFromCost, [&](int member, int n_members) {
    if (!alone_prepares) {
      prepare(input, input.n_rows * member / n_members, input.n_rows * (member + 1) / n_members);
      backend_.barrier(n_members);
    }
    for (std::size_t w = 0; w < lists.waves.size(); ++w) {
      const MatmulWave& wave = lists.waves[w];
      if (w > 0) backend_.barrier(n_members);  // the packs of the wave before are free now
      if (wave.packed) {
        pack(wave, member, n_members);
        backend_.barrier(n_members);
        compute_claims(wave, member, n_members);
      } else {
        compute_cut(wave, member, n_members);
      }
    }
  });
}

// Blocks of all groups, gathered into waves whose packs fit the plan's room.
void MatmulRun::plan() {
  MatmulLists& lists = backend_.lists_;
  const std::size_t room = backend_.plan_.packs_bytes;
  lists.blocks.clear();
  lists.tasks.clear();
  lists.waves.clear();
  std::size_t used = 0;
  std::int64_t wave_begin = 0;
  for (std::size_t g = 0; g < lists.groups.size(); ++g) {
    const MatmulGroup& group = lists.groups[g];
    const std::int64_t count = group.end - group.begin;
    if (count == 0) continue;
    const std::int64_t size = round_up(div_up(count, div_up(count, kBlockCols)), 8);
    for (std::int64_t begin = group.begin; begin < group.end; begin += size) {
      MatmulBlock block;
      block.begin = begin;
      block.end = std::min(begin + size, group.end);
      block.group = static_cast<std::int64_t>(g);
      const std::int64_t n_cols = block.end - block.begin;
      std::size_t need = 0;
      std::array<std::size_t, kMaxFormats> bytes{};
      for (std::size_t f = 0; f < static_cast<std::size_t>(n_formats_); ++f) {
        if (n_cols < formats_[f].many_from) continue;
        bytes[f] = aligned(backend_.table_.packed_bytes(formats_[f].format, n_cols, k_));
        need += bytes[f];
      }
      if (need > room) {
        fail<InternalError>("[cpu.", op_, "] scratch: packed columns need ", need, " bytes, ", room,
                            " are planned; reserve() was told of shorter rows");
      }
      if (used + need > room) {
        plan_wave(wave_begin, static_cast<std::int64_t>(lists.blocks.size()));
        wave_begin = static_cast<std::int64_t>(lists.blocks.size());
        used = 0;
      }
      for (std::size_t f = 0; f < static_cast<std::size_t>(n_formats_); ++f) {
        if (bytes[f] == 0) continue;
        block.pack[f] = used;
        used += bytes[f];
      }
      lists.blocks.push_back(block);
    }
  }
  plan_wave(wave_begin, static_cast<std::int64_t>(lists.blocks.size()));
}

void MatmulRun::plan_wave(std::int64_t block_begin, std::int64_t block_end) {
  if (block_begin == block_end) return;
  MatmulLists& lists = backend_.lists_;
  MatmulWave wave;
  wave.block_begin = block_begin;
  wave.block_end = block_end;
  wave.task_begin = static_cast<std::int64_t>(lists.tasks.size());
  std::int64_t piece = lists.waves.empty() ? 0 : lists.waves.back().piece_end;
  std::int64_t next = 0;
  for (std::int64_t first = block_begin; first < block_end; first = next) {
    const MatmulBlock& block = lists.blocks[static_cast<std::size_t>(first)];
    std::int64_t n_cols = 0;
    next = first;
    while (next < block_end && lists.blocks[static_cast<std::size_t>(next)].group == block.group) {
      const MatmulBlock& other = lists.blocks[static_cast<std::size_t>(next++)];
      n_cols += other.end - other.begin;
      for (const std::size_t offset : other.pack) wave.packed |= offset != kNotPacked;
    }
    for (int t = 0; t < n_targets_; ++t) {
      const CpuWeight& weight = *targets_[static_cast<std::size_t>(t)].output.weight;
      MatmulTask task;
      task.target = t;
      task.expert = lists.groups[static_cast<std::size_t>(block.group)].expert;
      task.block_begin = first;
      task.block_end = next;
      task.n_rows = weight.rows();
      task.cost_begin = wave.cost;
      // A byte read costs about what sixteen multiply-adds of a many-column kernel cost.
      task.row_cost = static_cast<std::int64_t>(weight.row_bytes()) + n_cols * k_ / 16;
      task.piece_rows = std::max(
          round_up(kPieceMacs / std::max<std::int64_t>(n_cols * k_, 1), kRowGrain), kRowGrain);
      // No fewer pieces than keep the team even.
      const std::int64_t even =
          round_up(div_up(task.n_rows, 4 * backend_.pool_.size()), 2 * kRowGrain);
      task.piece_rows = std::min(task.piece_rows, even);
      task.piece_begin = piece;
      piece += div_up(task.n_rows, task.piece_rows);
      wave.cost += task.n_rows * task.row_cost;
      lists.tasks.push_back(task);
    }
  }
  wave.task_end = static_cast<std::int64_t>(lists.tasks.size());
  wave.piece_end = piece;
  lists.waves.push_back(wave);
}

// Input rows [begin, end) in every format.
void MatmulRun::prepare(const MatmulInput& input, std::int64_t begin, std::int64_t end) const {
  for (std::size_t f = 0; f < static_cast<std::size_t>(n_formats_); ++f) {
    const Format& format = formats_[f];
    std::int64_t row = begin;
    while (row < end) {
      // As many rows as lie at one distance from each other.
      const std::int64_t inner = row % input.inner;
      const std::int64_t n_rows = input.inner == 1 ? std::min<std::int64_t>(end - row, 16)
                                                   : std::min(end - row, input.inner - inner);
      const float* x = input.x + row / input.inner * input.stride + inner * input.inner_stride;
      backend_.check_cancel();
      backend_.table_.prepare(format.format, x,
                              input.inner == 1 ? input.stride : input.inner_stride, n_rows, k_,
                              format.rows + static_cast<std::size_t>(row) * format.row_bytes);
      row += n_rows;
    }
  }
}

void MatmulRun::pack(const MatmulWave& wave, int member, int n_members) const {
  const MatmulLists& lists = backend_.lists_;
  const std::int64_t n_items = (wave.block_end - wave.block_begin) * n_formats_;
  for (std::int64_t i = member; i < n_items; i += n_members) {
    const MatmulBlock& block =
        lists.blocks[static_cast<std::size_t>(wave.block_begin + i / n_formats_)];
    const std::size_t f = static_cast<std::size_t>(i % n_formats_);
    if (block.pack[f] == kNotPacked) continue;
    backend_.check_cancel();
    const std::uint8_t* acts[kBlockCols];
    const std::int64_t n_cols = block.end - block.begin;
    for (std::int64_t c = 0; c < n_cols; ++c) {
      const MatmulColumn& column = lists.columns[static_cast<std::size_t>(block.begin + c)];
      acts[c] = formats_[f].rows + static_cast<std::size_t>(column.in) * formats_[f].row_bytes;
    }
    backend_.table_.pack(formats_[f].format, acts, n_cols, k_, packs_ + block.pack[f]);
  }
}

// Member's share of the wave's cost, as one run of rows over the tasks in order.
void MatmulRun::compute_cut(const MatmulWave& wave, int member, int n_members) const {
  const MatmulLists& lists = backend_.lists_;
  const std::int64_t low = wave.cost / n_members * member;
  const std::int64_t high =
      member + 1 == n_members ? wave.cost : wave.cost / n_members * (member + 1);
  const auto row_at = [](const MatmulTask& task, std::int64_t cost) {
    const std::int64_t rows = (cost - task.cost_begin) / task.row_cost;
    return rows >= task.n_rows ? task.n_rows
                               : std::max<std::int64_t>(rows, 0) / kRowGrain * kRowGrain;
  };
  for (std::int64_t t = wave.task_begin; t < wave.task_end; ++t) {
    const MatmulTask& task = lists.tasks[static_cast<std::size_t>(t)];
    const std::int64_t end = row_at(task, high);
    for (std::int64_t row = row_at(task, low); row < end; row += task.piece_rows) {
      compute_rows(task, row, std::min(row + task.piece_rows, end), nullptr,
                   backend_.member_arena(member, op_));
    }
  }
}

void MatmulRun::compute_claims(const MatmulWave& wave, int member, int n_members) const {
  const MatmulLists& lists = backend_.lists_;
  std::size_t t = static_cast<std::size_t>(wave.task_begin);
  for (std::int64_t piece = backend_.claim(wave.piece_end); piece >= 0;
       piece = backend_.claim(wave.piece_end)) {
    // Pieces are taken in rising order, so the task only moves on.
    while (t + 1 < static_cast<std::size_t>(wave.task_end) &&
           lists.tasks[t + 1].piece_begin <= piece) {
      ++t;
    }
    const MatmulTask& task = lists.tasks[t];
    const std::int64_t begin = (piece - task.piece_begin) * task.piece_rows;
    // Members that are equally fast take turns.
    const std::int64_t next = begin + n_members * task.piece_rows;
    compute_rows(
        task, begin, std::min(begin + task.piece_rows, task.n_rows),
        next < task.n_rows ? rows_of(task, next) : first_of(wave, static_cast<std::int64_t>(t) + 1),
        backend_.member_arena(member, op_));
  }
}

const std::uint8_t* MatmulRun::rows_of(const MatmulTask& task, std::int64_t row) const {
  const CpuWeight& weight = *targets_[static_cast<std::size_t>(task.target)].output.weight;
  return weight.expert(task.expert) + static_cast<std::size_t>(row) * weight.row_bytes();
}

const std::uint8_t* MatmulRun::first_of(const MatmulWave& wave, std::int64_t task) const {
  if (task >= wave.task_end) return nullptr;
  return rows_of(backend_.lists_.tasks[static_cast<std::size_t>(task)], 0);
}

// Weight rows [begin, end) of a task, over all its blocks while the rows are in the cache.
void MatmulRun::compute_rows(const MatmulTask& task, std::int64_t begin, std::int64_t end,
                             const std::uint8_t* next, Arena arena) const {
  const MatmulLists& lists = backend_.lists_;
  const Target& target = targets_[static_cast<std::size_t>(task.target)];
  const MatmulOutput& output = target.output;
  const CpuWeight& weight = *output.weight;
  const std::size_t f = static_cast<std::size_t>(target.format);
  const Format& format = formats_[f];
  const std::uint8_t* acts[kBlockCols];
  float* outs[kBlockCols];

  kernels::MatmulJob job;
  job.weight = rows_of(task, begin);
  job.weight_row_bytes = weight.row_bytes();
  job.n_rows = end - begin;
  job.k = k_;
  job.acts = acts;
  job.outs = outs;
  job.scratch =
      arena.take<std::uint8_t>(static_cast<std::int64_t>(kernels::matmul_scratch_bytes(k_)));
  for (std::int64_t b = task.block_begin; b < task.block_end; ++b) {
    const MatmulBlock& block = lists.blocks[static_cast<std::size_t>(b)];
    backend_.check_cancel();
    job.next = b + 1 == task.block_end ? next : nullptr;  // before it: these rows once more
    job.n_cols = block.end - block.begin;
    for (std::int64_t c = 0; c < job.n_cols; ++c) {
      const MatmulColumn& column = lists.columns[static_cast<std::size_t>(block.begin + c)];
      outs[c] = output.out + column.out / output.inner * output.stride +
                column.out % output.inner * output.inner_stride + begin;
      acts[c] = format.rows + static_cast<std::size_t>(column.in) * format.row_bytes;
    }
    const bool packed = block.pack[f] != kNotPacked && target.kernel->many != nullptr &&
                        job.n_cols >= target.kernel->many_from;
    if (packed) {
      target.kernel->many(job, {packs_ + block.pack[f], job.n_cols});
    } else {
      target.kernel->few(job);
    }
    if (const float scale = weight.scale(task.expert); scale != 1.0F) {
      for (std::int64_t c = 0; c < job.n_cols; ++c) {
        backend_.table_.scale(scale, job.n_rows, outs[c]);
      }
    }
    if (output.bias == nullptr) continue;
    const float* bias = output.bias + task.expert * weight.rows() + begin;
    for (std::int64_t c = 0; c < job.n_cols; ++c) {
      backend_.table_.add(outs[c], bias, job.n_rows, outs[c]);
    }
  }
}

// --- the operations

void CpuBackend::matmul(const Mat& x, std::span<const MatmulTarget> targets) {
  const View in = view(x, "matmul", "x");
  MatmulRun run(*this, "matmul", x.cols);
  std::array<MatmulOutput, kMaxTargets> outputs;
  if (targets.size() > kMaxTargets) {
    fail<InternalError>("[cpu.matmul] more than ", kMaxTargets, " targets");
  }
  for (std::size_t t = 0; t < targets.size(); ++t) {
    const CpuWeight& weight = weight_of(targets[t].weight, "matmul", "weight");
    if (weight.n_experts() != 1 || weight.cols() != x.cols) {
      fail<InternalError>("[cpu.matmul] weight: got (", weight.n_experts(), ", ", weight.rows(),
                          ", ", weight.cols(), "), need (1, *, ", x.cols, ")");
    }
    const View out = view(targets[t].out, x.rows, weight.rows(), "matmul", "out");
    const float* bias = targets[t].bias == nullptr
                            ? nullptr
                            : vector_of(targets[t].bias, weight.rows(), "matmul", "bias");
    outputs[t] = {&weight, bias, out.data, out.stride, 1, 0};
    run.add(outputs[t]);
  }
  if (x.rows == 0 || targets.empty()) return;
  const std::int64_t pass = run.max_input_rows();
  for (std::int64_t begin = 0; begin < x.rows; begin += pass) {
    const std::int64_t n_rows = std::min(pass, x.rows - begin);
    lists_.groups.assign(1, {0, 0, n_rows});
    lists_.columns.resize(static_cast<std::size_t>(n_rows));
    for (std::int64_t c = 0; c < n_rows; ++c) {
      // Outputs are counted from the operation's first row, inputs from the pass's.
      lists_.columns[static_cast<std::size_t>(c)] = {static_cast<std::int32_t>(c),
                                                     static_cast<std::int32_t>(begin + c)};
    }
    run.run({in.row(begin), n_rows, x.cols, in.stride, 1, 0});
  }
}

void CpuBackend::matmul_heads(const Mat& x, std::int64_t x_head_stride, const Weight& weight,
                              const Mat& out, std::int64_t out_head_stride) {
  const char* op = "matmul_heads";
  const CpuWeight& heads = weight_of(&weight, op, "weight");
  const std::int64_t n_heads = heads.n_experts();
  const View in = view(x, op, "x");
  const View to = view(out, op, "out");
  if (out.rows != x.rows || x_head_stride < heads.cols() || out_head_stride < heads.rows() ||
      (n_heads - 1) * x_head_stride + heads.cols() > x.cols ||
      (n_heads - 1) * out_head_stride + heads.rows() > out.cols) {
    fail<InternalError>("[cpu.matmul_heads] x (", x.rows, ", ", x.cols, ") with heads ",
                        x_head_stride, " apart, out (", out.rows, ", ", out.cols, ") with heads ",
                        out_head_stride, " apart, weight (", n_heads, ", ", heads.rows(), ", ",
                        heads.cols(), ")");
  }
  if (x.rows == 0) return;
  MatmulRun run(*this, op, heads.cols());
  run.add({&heads, nullptr, to.data, to.stride, n_heads, out_head_stride});
  const std::int64_t pass = run.max_input_rows() / n_heads;
  if (pass < 1) {
    fail<InternalError>("[cpu.matmul_heads] scratch: the ", n_heads,
                        " heads of one row do not fit; reserve() was told of fewer");
  }
  for (std::int64_t begin = 0; begin < x.rows; begin += pass) {
    const std::int64_t n_rows = std::min(pass, x.rows - begin);
    lists_.groups.clear();
    lists_.columns.clear();
    for (std::int64_t h = 0; h < n_heads; ++h) {
      for (std::int64_t r = 0; r < n_rows; ++r) {
        lists_.columns.push_back({static_cast<std::int32_t>(r * n_heads + h),
                                  static_cast<std::int32_t>((begin + r) * n_heads + h)});
      }
      lists_.groups.push_back({h, h * n_rows, (h + 1) * n_rows});
    }
    run.run({in.row(begin), n_rows * n_heads, heads.cols(), in.stride, n_heads, x_head_stride});
  }
}

}  // namespace moesaic::backend::cpu
