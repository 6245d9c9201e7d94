// Names of the kernels' tables, for `moesaic doctor` and for people who ask which code runs.
#include <string>
#include <vector>

#include "backend/backend.h"
#include "kernels/table.h"

namespace moesaic::backend {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const kernels::Table* table : kernels::available_tables()) names.emplace_back(table->isa);
  return names;
}

std::string current_isa() { return kernels::best_table().isa; }

}  // namespace moesaic::backend
