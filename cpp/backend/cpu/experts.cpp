// The router's choice and the matmuls of the chosen experts. The choice is exact scalar code: equal
// scores go to the lower expert, NaN counts as the lowest score, so that every index is valid
// whatever comes in.
#include <cmath>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"

namespace moesaic::backend::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct RouteScratch {
  float* probability;  // (n_experts): the weight an expert would get
  float* choice;       // (n_experts): what the selection looks at
  float* group;        // (n_groups)
};

float ordered(float score) { return std::isnan(score) ? kLowest : score; }

// The best n of `scores` in falling order, equal ones by rising index: ids[0..n).
void select_best(const float* scores, std::int64_t n_scores, std::int64_t n, std::int32_t* ids) {
  std::int64_t n_kept = 0;
  for (std::int64_t i = 0; i < n_scores; ++i) {
    std::int64_t at = n_kept;
    while (at > 0 && scores[i] > scores[ids[at - 1]]) --at;
    if (at == n) continue;
    for (std::int64_t j = std::min(n_kept, n - 1); j > at; --j) ids[j] = ids[j - 1];
    ids[at] = static_cast<std::int32_t>(i);
    n_kept = std::min(n_kept + 1, n);
  }
}

// Leaves only the best groups in the race (DeepSeek-V2 and V3, arXiv:2405.04434 section 2.1.2).
void limit_groups(const RouterSpec& spec, std::int64_t n_experts, const RouteScratch& scratch,
                  std::int32_t* kept) {
  const std::int64_t size = n_experts / spec.n_groups;
  for (std::int64_t g = 0; g < spec.n_groups; ++g) {
    float first = kLowest;
    float second = kLowest;
    for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
      const float score = scratch.choice[e];
      if (score > first) {
        second = first;
        first = score;
      } else if (score > second) {
        second = score;
      }
    }
    scratch.group[g] = ordered(spec.group_score_top2 && size > 1 ? first + second : first);
  }
  select_best(scratch.group, spec.n_groups, spec.n_groups_used, kept);
  for (std::int64_t g = 0; g < spec.n_groups; ++g) {
    if (std::find(kept, kept + spec.n_groups_used, g) != kept + spec.n_groups_used) continue;
    std::fill(scratch.choice + g * size, scratch.choice + (g + 1) * size, kLowest);
  }
}

void route_row(const kernels::Table& table, const float* logits, const RouterSpec& spec,
               const float* bias, std::int64_t n_experts, const RouteScratch& scratch,
               std::int32_t* kept_groups, std::int32_t* experts, float* weights) {
  switch (spec.function) {
    case RouterFunction::kSoftmax:
      table.softmax(logits, n_experts, scratch.probability);
      break;
    case RouterFunction::kSigmoid:
      table.sigmoid(logits, n_experts, scratch.probability);
      break;
    case RouterFunction::kSoftmaxSelected:
      std::copy_n(logits, n_experts, scratch.probability);
      break;
  }
  for (std::int64_t e = 0; e < n_experts; ++e) {
    scratch.choice[e] =
        ordered(bias == nullptr ? scratch.probability[e] : scratch.probability[e] + bias[e]);
  }
  if (spec.n_groups > 1) limit_groups(spec, n_experts, scratch, kept_groups);
  select_best(scratch.choice, n_experts, spec.n_active, experts);
  for (std::int64_t s = 0; s < spec.n_active; ++s) weights[s] = scratch.probability[experts[s]];
  if (spec.function == RouterFunction::kSoftmaxSelected) {
    table.softmax(weights, spec.n_active, weights);
  }
  if (spec.normalize) {
    double sum = 0.0;
    for (std::int64_t s = 0; s < spec.n_active; ++s) sum += static_cast<double>(weights[s]);
    const float divisor = std::max(static_cast<float>(sum), spec.norm_floor);
    for (std::int64_t s = 0; s < spec.n_active; ++s) weights[s] /= divisor;
  }
  for (std::int64_t s = 0; s < spec.n_active; ++s) weights[s] *= spec.scale;
}

struct RoutingView {
  std::int32_t* experts;  // (n, n_active)
  float* weights;         // (n, n_active)
};

RoutingView routing_view(const Routing& routing, std::int64_t n_rows, const char* op) {
  CpuBuffer& experts = buffer_of(routing.experts, op, "routing.experts");
  CpuBuffer& weights = buffer_of(routing.weights, op, "routing.weights");
  const std::size_t need = static_cast<std::size_t>(routing.n * routing.n_active) * 4;
  if (routing.n != n_rows || routing.n_active < 1 || routing.n_active > routing.n_experts ||
      experts.n_bytes() < need || weights.n_bytes() < need) {
    fail<InternalError>("[cpu.", op, "] routing of ", routing.n, " rows, ", routing.n_active,
                        " of ", routing.n_experts, " experts, for ", n_rows,
                        " rows, in buffers of ", experts.n_bytes(), " and ", weights.n_bytes(),
                        " bytes");
  }
  return {reinterpret_cast<std::int32_t*>(experts.data()),
          reinterpret_cast<float*>(weights.data())};
}

}  // namespace

void CpuBackend::route(const Mat& logits, const RouterSpec& spec, const Routing& out) {
  const char* op = "route";
  const View in = view(logits, logits.rows, out.n_experts, op, "logits");
  const RoutingView to = routing_view(out, logits.rows, op);
  if (spec.n_active != out.n_active || spec.n_groups < 1 || out.n_experts % spec.n_groups != 0 ||
      spec.n_groups_used < 1 || spec.n_groups_used > spec.n_groups ||
      spec.n_active > out.n_experts / spec.n_groups * spec.n_groups_used) {
    fail<InternalError>("[cpu.route] ", spec.n_active, " of ", out.n_experts, " experts, ",
                        spec.n_groups_used, " of ", spec.n_groups, " groups");
  }
  const float* bias = spec.selection_bias == nullptr
                          ? nullptr
                          : vector_of(spec.selection_bias, out.n_experts, op, "selection_bias");
  parallel(in.rows * out.n_experts > (1 << 13), [&](int member, int n_members) {
    Arena arena = member_arena(member, op);
    const RouteScratch scratch{arena.take<float>(out.n_experts), arena.take<float>(out.n_experts),
                               arena.take<float>(spec.n_groups)};
    std::int32_t* kept = arena.take<std::int32_t>(spec.n_groups_used);
    const std::int64_t end = in.rows * (member + 1) / n_members;
    for (std::int64_t r = in.rows * member / n_members; r < end; ++r) {
      if (r % 256 == 0) check_cancel();
      route_row(table_, in.row(r), spec, bias, out.n_experts, scratch, kept,
                to.experts + r * out.n_active, to.weights + r * out.n_active);
    }
  });
}

void CpuBackend::grouped_matmul(const Mat& x, GroupedInput input, const Routing& routing,
                                std::span<const MatmulTarget> targets) {
  const char* op = "grouped_matmul";
  const bool by_slot = input == GroupedInput::kSlot;
  const std::int64_t n_slots = routing.n * routing.n_active;
  const View in = view(x, by_slot ? n_slots : routing.n, x.cols, op, "x");
  const RoutingView choice = routing_view(routing, routing.n, op);
  MatmulRun run(*this, op, x.cols);
  for (const MatmulTarget& target : targets) {
    const CpuWeight& weight = weight_of(target.weight, op, "weight");
    if (weight.n_experts() != routing.n_experts || weight.cols() != x.cols) {
      fail<InternalError>("[cpu.grouped_matmul] weight: got (", weight.n_experts(), ", ",
                          weight.rows(), ", ", weight.cols(), "), need (", routing.n_experts,
                          ", *, ", x.cols, ")");
    }
    const View out = view(target.out, n_slots, weight.rows(), op, "out");
    const float* bias = nullptr;
    if (target.bias != nullptr) {
      const CpuWeight& values = weight_of(target.bias, op, "bias");
      const bool by_rows = values.n_experts() == 1 && values.rows() == routing.n_experts &&
                           values.cols() == weight.rows();
      const bool by_columns = values.n_experts() == routing.n_experts &&
                              values.rows() == weight.rows() && values.cols() == 1;
      if (!by_rows && !by_columns) {
        fail<InternalError>("[cpu.grouped_matmul] bias: got (", values.n_experts(), ", ",
                            values.rows(), ", ", values.cols(), "), need (1, ", routing.n_experts,
                            ", ", weight.rows(), ")");
      }
      bias = values.floats();
    }
    run.add({&weight, bias, out.data, out.stride, 1, 0});
  }
  if (n_slots == 0 || targets.empty()) return;

  const std::int64_t inputs_per_row = by_slot ? routing.n_active : 1;
  const std::int64_t pass = run.max_input_rows() / inputs_per_row;
  if (pass < 1) {
    fail<InternalError>("[cpu.grouped_matmul] scratch: the ", routing.n_active,
                        " slots of one row do not fit; reserve() was told of fewer");
  }
  std::vector<std::int64_t>& next = lists_.counts;
  for (std::int64_t begin = 0; begin < routing.n; begin += pass) {
    const std::int64_t n_rows = std::min(pass, routing.n - begin);
    const std::int32_t* experts = choice.experts + begin * routing.n_active;
    const std::int64_t n_columns = n_rows * routing.n_active;
    // Slots sorted by expert, slot order kept inside one: a counting sort.
    next.assign(static_cast<std::size_t>(routing.n_experts + 1), 0);
    for (std::int64_t s = 0; s < n_columns; ++s) {
      if (experts[s] < 0 || experts[s] >= routing.n_experts) {
        fail<InternalError>("[cpu.grouped_matmul] expert ", experts[s], " of ", routing.n_experts);
      }
      ++next[static_cast<std::size_t>(experts[s] + 1)];
    }
    lists_.groups.clear();
    for (std::int64_t e = 0; e < routing.n_experts; ++e) {
      const std::int64_t first = next[static_cast<std::size_t>(e)];
      const std::int64_t count = next[static_cast<std::size_t>(e + 1)];
      if (count > 0) lists_.groups.push_back({e, first, first + count});
      next[static_cast<std::size_t>(e + 1)] = first + count;
    }
    lists_.columns.resize(static_cast<std::size_t>(n_columns));
    for (std::int64_t s = 0; s < n_columns; ++s) {
      const std::int64_t at = next[static_cast<std::size_t>(experts[s])]++;
      lists_.columns[static_cast<std::size_t>(at)] = {
          static_cast<std::int32_t>(by_slot ? s : s / routing.n_active),
          static_cast<std::int32_t>(begin * routing.n_active + s)};
    }
    run.run({in.row(begin * inputs_per_row), n_rows * inputs_per_row, x.cols, in.stride, 1, 0});
  }
}

void CpuBackend::combine(const Mat& x, const Routing& routing, const Mat* base, const Mat& out) {
  const char* op = "combine";
  constexpr std::int64_t kPiece = 1024;  // floats of a row that stay in L1 over all slots
  const std::int64_t n_active = routing.n_active;
  const View in = view(x, routing.n * n_active, out.cols, op, "x");
  const View to = view(out, routing.n, out.cols, op, "out");
  const RoutingView choice = routing_view(routing, routing.n, op);
  View from;
  if (base != nullptr) from = view(*base, routing.n, out.cols, op, "base");
  const std::int64_t pieces = (out.cols + kPiece - 1) / kPiece;
  parallel_for(to.rows * pieces, 1, in.rows * in.cols > (1 << 15),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const std::int64_t r = i / pieces;
                   const std::int64_t c = i % pieces * kPiece;
                   const std::int64_t n = std::min(kPiece, out.cols - c);
                   if (i % 64 == 0) check_cancel();
                   float* sum = to.row(r) + c;
                   if (from.data == nullptr) {
                     std::fill_n(sum, n, 0.0F);
                   } else if (from.row(r) + c != sum) {
                     std::copy_n(from.row(r) + c, n, sum);
                   }
                   for (std::int64_t s = r * n_active; s < (r + 1) * n_active; ++s) {
                     table_.add_scaled(in.row(s) + c, choice.weights[s], n, sum);
                   }
                 }
               });
}

}  // namespace moesaic::backend::cpu
