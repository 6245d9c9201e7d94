// The list of families; see registry.h.
#include "model/arch/registry.h"

#include <array>
#include <string>

namespace moesaic::model::arch {

std::span<const Family> families() {
  static const std::array all{kDeepseek2, kGlm4Moe, kGptOss, kLlama, kQwen2, kQwen3, kQwen3Moe};
  return all;
}

const Family& family_of(const Keys& keys) {
  std::string known;
  for (const Family& family : families()) {
    if (family.name == keys.arch()) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.name);
  }
  fail<FormatError>("[model] ", keys.path(), ": key general.architecture: got '", keys.arch(),
                    "', need one of: ", known);
}

}  // namespace moesaic::model::arch
