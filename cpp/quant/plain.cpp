// Loads and stores through memcpy, because a view may begin at any byte.
#include "quant/plain.h"

#include <bit>
#include <cstring>

#include "quant/half.h"

namespace moesaic::quant {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little endian, and so are we");

template <typename Elem, typename Convert>
void decode_each(const std::uint8_t* elems, std::int64_t n, float* out, Convert convert) {
  for (std::int64_t i = 0; i < n; ++i) {
    Elem elem;
    std::memcpy(&elem, elems + i * static_cast<std::int64_t>(sizeof(Elem)), sizeof(Elem));
    out[i] = convert(elem);
  }
}

template <typename Elem>
void decode_cast(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_each<Elem>(elems, n, out, [](Elem elem) { return static_cast<float>(elem); });
}

template <typename Convert>
void encode_u16(const float* in, std::int64_t n, std::uint8_t* elems, Convert convert) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint16_t elem = convert(in[i]);
    std::memcpy(elems + 2 * i, &elem, 2);
  }
}

}  // namespace

void decode_f32(const std::uint8_t* elems, std::int64_t n, float* out) {
  if (n > 0) std::memcpy(out, elems, static_cast<std::size_t>(n) * sizeof(float));
}
void decode_f16(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_each<std::uint16_t>(elems, n, out, f16_to_f32);
}
void decode_bf16(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_each<std::uint16_t>(elems, n, out, bf16_to_f32);
}
void decode_f64(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_cast<double>(elems, n, out);
}
void decode_i8(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_cast<std::int8_t>(elems, n, out);
}
void decode_i16(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_cast<std::int16_t>(elems, n, out);
}
void decode_i32(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_cast<std::int32_t>(elems, n, out);
}
void decode_i64(const std::uint8_t* elems, std::int64_t n, float* out) {
  decode_cast<std::int64_t>(elems, n, out);
}

void encode_f32(const float* in, std::int64_t n, std::uint8_t* elems) {
  if (n > 0) std::memcpy(elems, in, static_cast<std::size_t>(n) * sizeof(float));
}
void encode_f16(const float* in, std::int64_t n, std::uint8_t* elems) {
  encode_u16(in, n, elems, f32_to_f16);
}
void encode_bf16(const float* in, std::int64_t n, std::uint8_t* elems) {
  encode_u16(in, n, elems, f32_to_bf16);
}

}  // namespace moesaic::quant
