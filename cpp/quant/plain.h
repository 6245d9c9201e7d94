// Elements without blocks: floats and integers as they are. F32, F16 and BF16 can be weights; the
// others are only read.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// n elements of the type, little endian, at any alignment -> n floats (nearest, ties to even, where
// a float is too narrow).
void decode_f32(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_f16(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_bf16(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_f64(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_i8(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_i16(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_i32(const std::uint8_t* elems, std::int64_t n, float* out);
void decode_i64(const std::uint8_t* elems, std::int64_t n, float* out);

void encode_f32(const float* in, std::int64_t n, std::uint8_t* elems);
void encode_f16(const float* in, std::int64_t n, std::uint8_t* elems);
void encode_bf16(const float* in, std::int64_t n, std::uint8_t* elems);

}  // namespace moesaic::quant
