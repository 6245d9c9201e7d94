// The table of an ISA, put together from its parts; see part_k_quants.h.
#pragma once

#include "kernels/common/fill_table.h"
#include "kernels/tables.h"
#include "kernels/x86/pack.h"

namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE {

void fill_k_quants(Table& table);
void fill_iq(Table& table);
void fill_small(Table& table);
#ifdef MOESAIC_VNNI
void fill_bf16(Table& table);  // where the CPU has it: a choice of its own beside the table's
#endif

const Table* table() {
  static Table instance = {};
  static const bool filled = [] {
    fill_float_part<Simd>(instance, {MOESAIC_ISA_NAME, MOESAIC_ISA_NAME "/F32",
                                     MOESAIC_ISA_NAME "/F16", MOESAIC_ISA_NAME "/BF16"});
    fill_k_quants(instance);
    fill_iq(instance);
    fill_small(instance);
#ifdef MOESAIC_VNNI
    fill_bf16(instance);
#endif
    instance.packed_bytes = Packing<Ints>::bytes;
    instance.pack = Packing<Ints>::pack;
    return true;
  }();
  static_cast<void>(filled);
  return &instance;
}

}  // namespace moesaic::kernels::MOESAIC_ISA_NAMESPACE
