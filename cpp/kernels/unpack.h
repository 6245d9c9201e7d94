// What a block of an integer weight type means, as exact integers and a few floats: the scalar
// truth that all integer kernels agree on. The types fall into two families:
//
// Super-blocks of 256 (K-quants, IQ except IQ4_NL, TQ), against activations with one scale per 256:
//   isum = sum_g scale[g] * sum_{i in g} value[i] * q[i]      (16 groups g of 16; int32, exact)
//   msum = sum_g min[g] * sum[g]                              (int32, exact; types with minima)
//   p    = (d * da) * float(isum)                             or, with minima,
//   p    = fma(d * da, float(isum), -((dmin * da) * float(msum)))
//   out  = p of block 0 + p of block 1 + ...                  (one float after the other)
//
// Blocks of 32 (a larger block counts as several with its scale), against activations with one
// scale per 32; block b belongs to lane b % 8:
//   dot     = sum_i value[i] * q[i]                           (int32, exact)
//   lane    = fma(d * da, float(dot), lane)                   and, with minima,
//   lane    = fma(min, da * float(sum of q), lane)
//   out     = lane 0 + lane 1 + ... + lane 7                  (one float after the other)
// NVFP4 has a scale per 16: lane = fma(da, fma(d1, float(dot1), d0 * float(dot0)), lane).
//
// Every table forms exactly these floats in exactly this order; the integers may be reached by any
// route. So few and many columns, any cut and any ISA give the same bits.
#pragma once

#include <cstdint>

#include "quant/qtype.h"

namespace moesaic::kernels {

struct SuperBlock {
  alignas(64) std::int8_t value[256];
  alignas(32) std::int16_t scale[16];
  alignas(32) std::int16_t min[16];  // zeros for types without minima
  float d;
  float dmin;
};

struct SmallBlock {
  alignas(32) std::int8_t value[32];
  float d;    // of the first 16 values, and of all unless the type has a scale per 16
  float d16;  // of the last 16 values, for such types
  float min;  // 0 for types without minima
};

struct SuperType {
  quant::Qtype type;
  int block_bytes;
  bool has_min;
  void (*unpack)(const std::uint8_t* block, SuperBlock& out);
};

struct SmallType {
  quant::Qtype type;
  int block_bytes;  // of block_elems values
  int block_elems;  // 32, or a multiple for NVFP4, Q1_0 and Q2_0, whose blocks count as several
  bool has_min;
  bool has_d16;
  // Values [32 * part, 32 * part + 32) of a block.
  void (*unpack)(const std::uint8_t* block, int part, SmallBlock& out);
};

// The row of a type, or null when the type is of the other family or a float.
const SuperType* super_type(quant::Qtype type);
const SmallType* small_type(quant::Qtype type);

}  // namespace moesaic::kernels
