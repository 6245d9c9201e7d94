// Where partial sums of a layer meet those of other machines: after attention and after the MLP,
// before the residual is added. On one machine there is nothing to meet. Not for hidden rows
// between pipeline stages: those go in and out of a forward pass.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace moesaic::model {

enum class ExchangePoint { kAttention, kMlp };

class Exchange {
 public:
  virtual ~Exchange() = default;
  // partial (n, d_model) holds this machine's sum; after wait() it holds everybody's.
  virtual void start(backend::Backend& backend, std::int64_t layer, ExchangePoint point,
                     const backend::Mat& partial) = 0;
  virtual void wait() = 0;
};

class NoExchange final : public Exchange {
 public:
  void start(backend::Backend&, std::int64_t, ExchangePoint, const backend::Mat&) override {}
  void wait() override {}
};

}  // namespace moesaic::model
