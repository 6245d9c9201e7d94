// The families that this build knows: an explicit list. A family is two functions: its
// configuration from keys and tensors, and the tensors of a layer.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "model/config.h"
#include "model/file/keys.h"
#include "model/file/tensor_list.h"

namespace moesaic::model::arch {

struct Family {
  std::string_view name;  // general.architecture
  Config (*read)(const Keys& keys);
  void (*list_layer)(TensorList& list, const Config& config);
};

std::span<const Family> families();
// Throws FormatError that lists the known families.
const Family& family_of(const Keys& keys);

// One per file of this folder.
extern const Family kDeepseek2;
extern const Family kGlm4Moe;
extern const Family kGptOss;
extern const Family kLlama;
extern const Family kQwen2;
extern const Family kQwen3;
extern const Family kQwen3Moe;

}  // namespace moesaic::model::arch
