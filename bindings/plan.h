// What bindings share of plans: a model's costs, and plans as plain Python data.
#pragma once

#include <memory>

#include "bindings/engine_types.h"
#include "bindings/gguf_file.h"
#include "bindings/overrides.h"
#include "cluster/plan/plan.h"
#include "gguf/file.h"

namespace moesaic::bindings {

// A model to plan for: of a file's headers, wherever they come from.
class PlanModel {
 public:
  PlanModel(std::shared_ptr<const gguf::File> file, const Dict& overrides)
      : model_(model::understand(std::move(file), overrides_from(overrides))) {}
  const model::ModelFile& model() const { return model_; }

 private:
  model::ModelFile model_;
};

// As moesaic.Plan.to_dict() gives it, and back. Throws ArgumentError naming what is missing or of a
// wrong type; whether the plan suits the model and the nodes evaluate_plan() says.
Dict plan_to_dict(const cluster::Plan& plan);
cluster::Plan plan_from_dict(const pybind11::dict& dict);
// layer_ends of evaluate_plan().
std::vector<std::int64_t> layer_ends(const cluster::Plan& plan);

cluster::Strategy strategy_from(const std::string& name);

}  // namespace moesaic::bindings
