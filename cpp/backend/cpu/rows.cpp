// Operations on rows: embedding, copies, sums, norms, rope, gated activations. Each element (or
// each row, for norms) is made by one kernel call whatever the cut.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"

namespace moesaic::backend::cpu {
namespace {

// Floats from which the team is worth waking: plain streams, and functions with an exp inside.
constexpr std::int64_t kTeamFromStream = 64 << 10;
constexpr std::int64_t kTeamFromExp = 16 << 10;
// Floats between two looks at the cancel flag.
constexpr std::int64_t kPiece = 1 << 14;

// Calls work(row, column, n) on pieces of at most `piece` floats of the rows [begin, end) of
// flattened pieces.
struct Pieces {
  std::int64_t per_row;
  std::int64_t cols;
  std::int64_t count(std::int64_t rows) const { return rows * per_row; }
  std::int64_t row(std::int64_t i) const { return i / per_row; }
  std::int64_t col(std::int64_t i) const { return i % per_row * kPieceCols; }
  std::int64_t n(std::int64_t i) const { return std::min(kPieceCols, cols - col(i)); }
  static constexpr std::int64_t kPieceCols = 2048;
};

Pieces pieces_of(std::int64_t cols) {
  return {std::max<std::int64_t>((cols + Pieces::kPieceCols - 1) / Pieces::kPieceCols, 1), cols};
}

bool same_frequencies(const RopeSpec& a, const RopeSpec& b) {
  return a.magnitude == b.magnitude && a.inverse_freqs == b.inverse_freqs;
}

}  // namespace

void CpuBackend::embed(const Weight& table, std::span<const std::int32_t> tokens, const Mat& out) {
  const CpuWeight& weight = weight_of(&table, "embed", "table");
  const std::int64_t n = static_cast<std::int64_t>(tokens.size());
  const View to = view(out, n, weight.cols(), "embed", "out");
  for (std::int64_t r = 0; r < n; ++r) {
    const std::int32_t token = tokens[static_cast<std::size_t>(r)];
    if (token < 0 || token >= weight.rows()) {
      fail<ArgumentError>("[embed] tokens: got id ", token, " at row ", r, ", need 0 to ",
                          weight.rows() - 1);
    }
  }
  const quant::QtypeTraits& type = quant::traits(weight.type());
  parallel_for(n, 1, n * weight.cols() > kTeamFromExp, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      if (r % 16 == 0) check_cancel();
      type.decode(weight.expert(0) + static_cast<std::size_t>(tokens[static_cast<std::size_t>(r)]) *
                                         weight.row_bytes(),
                  weight.cols() / type.block_elems, to.row(r));
      if (weight.scale(0) != 1.0F) table_.scale(weight.scale(0), weight.cols(), to.row(r));
    }
  });
}

void CpuBackend::copy(const Mat& x, const Mat& out) {
  const View in = view(x, "copy", "x");
  const View to = view(out, x.rows, x.cols, "copy", "out");
  parallel_for(x.rows, 1, x.rows * x.cols > kTeamFromStream,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t r = begin; r < end; ++r) {
                   std::memmove(to.row(r), in.row(r), static_cast<std::size_t>(x.cols) * 4);
                 }
               });
}

void CpuBackend::gather_rows(const Mat& x, std::span<const std::int32_t> rows, const Mat& out) {
  const View in = view(x, "gather_rows", "x");
  const View to = view(out, static_cast<std::int64_t>(rows.size()), x.cols, "gather_rows", "out");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || rows[i] >= x.rows) {
      fail<InternalError>("[cpu.gather_rows] row ", rows[i], " of ", x.rows);
    }
    std::memmove(to.row(static_cast<std::int64_t>(i)), in.row(rows[i]),
                 static_cast<std::size_t>(x.cols) * 4);
  }
}

void CpuBackend::add(const Mat& x, const Mat& y, const Mat& out) {
  const View a = view(x, "add", "x");
  const View b = view(y, x.rows, x.cols, "add", "y");
  const View to = view(out, x.rows, x.cols, "add", "out");
  const Pieces pieces = pieces_of(x.cols);
  parallel_for(pieces.count(x.rows), 1, x.rows * x.cols > kTeamFromStream,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const std::int64_t r = pieces.row(i);
                   const std::int64_t c = pieces.col(i);
                   table_.add(a.row(r) + c, b.row(r) + c, pieces.n(i), to.row(r) + c);
                 }
               });
}

void CpuBackend::rms_norm(const Mat& x, const Weight* weight, float eps, const Mat& out) {
  const View in = view(x, "rms_norm", "x");
  const View to = view(out, x.rows, x.cols, "rms_norm", "out");
  const float* scale =
      weight == nullptr ? nullptr : vector_of(weight, x.cols, "rms_norm", "weight");
  parallel_for(x.rows, 1, x.rows * x.cols > kTeamFromStream,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t r = begin; r < end; ++r) {
                   table_.rms_norm(in.row(r), scale, eps, x.cols, to.row(r));
                 }
               });
}

// cos and sin of every row's position, (n, n_rot / 2, 2), kept from the last calls: all layers of a
// step ask for the same. Angles are formed in double: position * frequency loses digits in float
// from some thousand positions on.
const float* CpuBackend::cos_sin_table(const RopeSpec& spec,
                                       std::span<const std::int32_t> positions) {
  for (int i = 0; i < 2; ++i) {
    const RopeTable& table = rope_tables_[i];
    if (same_frequencies(table.spec, spec) && std::ranges::equal(table.positions, positions)) {
      rope_last_ = i;
      return table.cos_sin.data();
    }
  }
  rope_last_ = 1 - rope_last_;  // the other one is the older
  RopeTable& table = rope_tables_[rope_last_];
  const std::size_t n_pairs = spec.inverse_freqs.size();
  table.positions.clear();  // a cancelled fill must not be taken for a whole one
  table.spec = spec;
  table.cos_sin.resize(positions.size() * n_pairs * 2);
  const std::int64_t n = static_cast<std::int64_t>(positions.size());
  parallel_for(n, 1, positions.size() * n_pairs > 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      if (r % 64 == 0) check_cancel();
      float* cos_sin = table.cos_sin.data() + static_cast<std::size_t>(r) * n_pairs * 2;
      for (std::size_t i = 0; i < n_pairs; ++i) {
        const double angle = positions[static_cast<std::size_t>(r)] * spec.inverse_freqs[i];
        cos_sin[2 * i] = static_cast<float>(std::cos(angle) * spec.magnitude);
        cos_sin[2 * i + 1] = static_cast<float>(std::sin(angle) * spec.magnitude);
      }
    }
  });
  table.positions.assign(positions.begin(), positions.end());
  return table.cos_sin.data();
}

void CpuBackend::rope(const Mat& x, std::int64_t d_head, std::int64_t rot_begin,
                      const RopeSpec& spec, std::span<const std::int32_t> positions) {
  const View in = view(x, static_cast<std::int64_t>(positions.size()), x.cols, "rope", "x");
  if (d_head < 1 || x.cols % d_head != 0 || rot_begin < 0 || spec.n_rot < 2 ||
      spec.n_rot % 2 != 0 || rot_begin + spec.n_rot > d_head ||
      static_cast<std::int64_t>(spec.inverse_freqs.size()) != spec.n_rot / 2) {
    fail<InternalError>("[cpu.rope] heads of ", d_head, " in rows of ", x.cols, ", turning [",
                        rot_begin, ", +", spec.n_rot, ") with ", spec.inverse_freqs.size(),
                        " frequencies");
  }
  if (positions.empty()) return;
  const float* table = cos_sin_table(spec, positions);
  const std::int64_t n_heads = x.cols / d_head;
  parallel_for(x.rows, 1, x.rows * n_heads * spec.n_rot > kTeamFromStream,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t r = begin; r < end; ++r) {
                   for (std::int64_t h = 0; h < n_heads; ++h) {
                     table_.rope(in.row(r) + h * d_head + rot_begin, table + r * spec.n_rot,
                                 spec.n_rot, spec.interleaved);
                   }
                 }
               });
}

void CpuBackend::gated_activation(const Mat& gate, const Mat& up, const ActivationSpec& spec,
                                  const Mat& out) {
  const View g = view(gate, "gated_activation", "gate");
  const View u = view(up, gate.rows, gate.cols, "gated_activation", "up");
  const View to = view(out, gate.rows, gate.cols, "gated_activation", "out");
  const Pieces pieces = pieces_of(gate.cols);
  parallel_for(pieces.count(gate.rows), 1, gate.rows * gate.cols > kTeamFromExp,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   if (i % (kPiece / Pieces::kPieceCols) == 0) check_cancel();
                   const std::int64_t r = pieces.row(i);
                   const std::int64_t c = pieces.col(i);
                   if (spec.kind == Activation::kSilu) {
                     table_.silu_mul(g.row(r) + c, u.row(r) + c, pieces.n(i), to.row(r) + c);
                   } else {
                     table_.swiglu_oai(g.row(r) + c, u.row(r) + c, spec.alpha, spec.limit,
                                       pieces.n(i), to.row(r) + c);
                   }
                 }
               });
}

}  // namespace moesaic::backend::cpu
