// The part of a table that is the same text for every ISA: float weights, float operations,
// attention, preparation of activations.
#pragma once

#include "kernels/common/attention.h"
#include "kernels/common/f32_ops.h"
#include "kernels/common/float_matmul.h"
#include "kernels/common/prepare.h"

namespace moesaic::kernels {

// Names of the kernels of float weights, "<isa>/<type>".
struct FloatNames {
  const char* isa;
  const char* f32;
  const char* f16;
  const char* bf16;
};

// From this many columns on the packed form of float weights is used: never, few tiles as well.
inline constexpr std::int64_t kNever = std::int64_t{1} << 62;

template <class S>
void fill_float_part(Table& table, const FloatNames& names) {
  using quant::Qtype;
  const auto at = [&](Qtype type) -> MatmulKernel& {
    return table.matmul[static_cast<std::uint32_t>(type)];
  };
  at(Qtype::kF32) = {ActFormat::kF32, names.f32, float_few<S, F32Weight<S>>,
                     float_many<S, F32Weight<S>>, kNever};
  at(Qtype::kF16) = {ActFormat::kF32, names.f16, float_few<S, F16Weight<S>>,
                     float_many<S, F16Weight<S>>, kNever};
  at(Qtype::kBF16) = {ActFormat::kF32, names.bf16, float_few<S, BF16Weight<S>>,
                      float_many<S, BF16Weight<S>>, kNever};
  table.isa = names.isa;
  table.prepare = prepare<S>;
  table.attention = attention<S>;
  table.attention_merge = attention_merge<S>;
  table.attention_finish = attention_finish<S>;
  table.rms_norm = F32Ops<S>::rms_norm;
  table.rope = F32Ops<S>::rope;
  table.add = F32Ops<S>::add;
  table.add_scaled = F32Ops<S>::add_scaled;
  table.scale = F32Ops<S>::scale;
  table.silu_mul = F32Ops<S>::silu_mul;
  table.swiglu_oai = F32Ops<S>::swiglu_oai;
  table.sigmoid = F32Ops<S>::sigmoid;
  table.softmax = F32Ops<S>::softmax;
  table.log_sum_exp = F32Ops<S>::log_sum_exp;
  table.to_f16 = F32Ops<S>::to_f16;
  table.from_f16 = F32Ops<S>::from_f16;
}

}  // namespace moesaic::kernels
