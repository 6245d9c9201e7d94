// Header, metadata and tensor directory of one part. The rule for every number read: compare it
// with what the bytes left can hold before using it.
#include "gguf/parse.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "base/errors.h"
#include "gguf/cursor.h"
#include "gguf/layout.h"

namespace moesaic::gguf {
namespace {

// Least bytes in the file: a key (length, one byte), its type and a one-byte value; a tensor
// (length, one byte), n_dims, type and offset.
constexpr std::uint64_t kLeastKeyBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kLeastTensorBytes = 8 + 1 + 4 + 4 + 8;

struct Header {
  std::uint32_t version;
  std::uint64_t n_tensors;
  std::uint64_t n_keys;
};

// `at` is where the count stands in the file.
void check_count(const Cursor& cursor, std::uint64_t at, std::uint64_t count,
                 std::uint64_t least_bytes, std::uint64_t cap, std::string_view what) {
  if (count > cursor.left() / least_bytes) {
    cursor.fail_at(at, what, ": ", count, ", but the ", cursor.left(),
                   " bytes that follow hold at most ", cursor.left() / least_bytes,
                   "; the file is damaged or cut off");
  }
  if (count > cap) {
    cursor.fail_at(at, what, ": ", count, ", need at most ", cap);
  }
}

Header read_header(Cursor& cursor, std::span<const std::uint8_t> bytes) {
  if (bytes.empty()) cursor.fail_here("the file is empty, need a GGUF file");
  const std::size_t n_magic = std::min(bytes.size(), sizeof kMagic);
  if (std::memcmp(bytes.data(), kMagic, n_magic) != 0) {
    cursor.fail_here("this is not a GGUF file: it does not begin with \"GGUF\".",
                     looks_like(bytes));
  }
  cursor.take(sizeof kMagic, "magic");
  Header header{};
  header.version = cursor.read<std::uint32_t>("version");
  if ((header.version & 0xFFFFU) == 0 && header.version != 0) {
    cursor.fail_at(4, "a big-endian GGUF file (version ", __builtin_bswap32(header.version),
                   "), need little endian: convert it with gguf-py's gguf_convert_endian");
  }
  if (header.version == 1) {
    cursor.fail_at(4, "GGUF version 1 is no longer read, need version 2 or 3: convert it again");
  }
  if (header.version != 2 && header.version != 3) {
    cursor.fail_at(4, "GGUF version ", header.version, ", need version 2 or 3");
  }
  header.n_tensors = cursor.read<std::uint64_t>("tensor count");
  header.n_keys = cursor.read<std::uint64_t>("key count");
  check_count(cursor, 16, header.n_keys, kLeastKeyBytes, kMaxKeys, "key count");
  check_count(cursor, 8, header.n_tensors, kLeastTensorBytes, kMaxTensors, "tensor count");
  return header;
}

ValueType read_value_type(Cursor& cursor, std::string_view what) {
  const auto id = cursor.read<std::uint32_t>(what);
  if (id > static_cast<std::uint32_t>(ValueType::kF64)) {
    cursor.fail_at(cursor.position() - 4, what, ": ", id, ", need 0 to 12");
  }
  return static_cast<ValueType>(id);
}

void check_bools(const Cursor& cursor, std::span<const std::uint8_t> bytes) {
  const auto bad = std::find_if(bytes.begin(), bytes.end(), [](std::uint8_t b) { return b > 1; });
  if (bad != bytes.end()) {
    cursor.fail_at(cursor.position() - static_cast<std::uint64_t>(bytes.end() - bad),
                   "a bool of value ", static_cast<int>(*bad), ", need 0 or 1");
  }
}

void skip_array(Cursor& cursor) {
  const ValueType elem_type = read_value_type(cursor, "array element type");
  if (elem_type == ValueType::kArray) {
    cursor.fail_at(cursor.position() - 4, "an array of arrays, need scalars or strings");
  }
  const auto count = cursor.read<std::uint64_t>("array count");
  const bool is_string = elem_type == ValueType::kString;
  const std::uint64_t least_bytes = is_string ? 8 : scalar_bytes(elem_type);
  if (count > cursor.left() / least_bytes) {
    cursor.fail_at(cursor.position() - 8, "an array of ", count, " elements of ",
                   value_type_name(elem_type), ", but only ", cursor.left(),
                   " bytes follow in the file; it is damaged or cut off");
  }
  if (!is_string) {
    const auto bytes = cursor.take(count * least_bytes, "array");
    if (elem_type == ValueType::kBool) check_bools(cursor, bytes);
    return;
  }
  for (std::uint64_t i = 0; i < count; ++i) cursor.read_string("string in an array");
}

Value read_value(Cursor& cursor, std::span<const std::uint8_t> bytes) {
  const std::uint64_t key_at = cursor.position();
  const std::string_view key = cursor.read_string("key");
  cursor.set_subject("key", key);
  if (key.empty() || key.size() > kMaxNameBytes) {
    cursor.fail_at(key_at, "a key of ", key.size(), " bytes, need 1 to ", kMaxNameBytes);
  }
  const ValueType type = read_value_type(cursor, "value type");
  const std::uint64_t start = cursor.position();
  if (type == ValueType::kString) {
    cursor.read_string("string");
  } else if (type == ValueType::kArray) {
    skip_array(cursor);
  } else {
    const auto payload = cursor.take(scalar_bytes(type), "value");
    if (type == ValueType::kBool) check_bools(cursor, payload);
  }
  if (cursor.position() > kMaxHeaderBytes) {
    cursor.fail_at(start, "metadata past ", kMaxHeaderBytes, " bytes, more than is read");
  }
  return {key, type, bytes.subspan(start, cursor.position() - start)};
}

std::uint64_t read_alignment(const Cursor& cursor, const ParsedPart& part) {
  const Value* value = find_value(part, "general.alignment");
  if (value == nullptr) return kDefaultAlignment;
  if (value->type() != ValueType::kU32) {
    cursor.fail_here("key \"general.alignment\" is ", value_type_name(value->type()), ", need u32");
  }
  const std::uint64_t alignment = value->as_uint();
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kMaxAlignment) {
    cursor.fail_here("key \"general.alignment\" is ", alignment, ", need a power of two from 8 to ",
                     kMaxAlignment);
  }
  return alignment;
}

std::string_view unknown_type_hint(std::uint32_t id) {
  switch (id) {
    case 4:
    case 5:
      return " (Q4_2 and Q4_3 were removed from the format: convert the model again)";
    case 31:
    case 32:
    case 33:
    case 36:
    case 37:
    case 38:
      return " (the interleaved Q4_0 and IQ4_NL types were removed from the format: use Q4_0 or "
             "IQ4_NL, or convert the model again)";
    case 9:
    case 15:
      return " (Q8_1 and Q8_K are for activations in memory, not for files)";
    default:
      return "";
  }
}

quant::Qtype read_qtype(Cursor& cursor) {
  const auto id = cursor.read<std::uint32_t>("element type");
  const std::optional<quant::Qtype> type = quant::qtype_from_id(id);
  if (!type) {
    cursor.fail_at(cursor.position() - 4, "unknown element type ", id, unknown_type_hint(id));
  }
  return *type;
}

// Fills n_elems and n_bytes from ne and type.
void measure(const Cursor& cursor, TensorInfo& tensor) {
  const quant::QtypeTraits& traits = quant::traits(tensor.type);
  tensor.n_elems = 1;
  for (const std::uint64_t n : tensor.ne) {
    if (n == 0) cursor.fail_here("a dimension of 0 elements, need at least 1");
    if (__builtin_mul_overflow(tensor.n_elems, n, &tensor.n_elems) ||
        tensor.n_elems > static_cast<std::uint64_t>(INT64_MAX) / 8) {
      cursor.fail_here("its dimensions multiply to more elements than 60 bits count");
    }
  }
  const auto block_elems = static_cast<std::uint64_t>(traits.block_elems);
  if (tensor.ne[0] % block_elems != 0) {
    cursor.fail_here("rows of ", tensor.ne[0], " elements of ", traits.name,
                     ", need a multiple of ", block_elems);
  }
  // Below 2^60 elements at 8 bytes at most: fits.
  tensor.n_bytes = tensor.n_elems / block_elems * static_cast<std::uint64_t>(traits.block_bytes);
}

TensorInfo read_tensor(Cursor& cursor, std::uint64_t alignment) {
  TensorInfo tensor{};
  const std::uint64_t name_at = cursor.position();
  const std::string_view name = cursor.read_string("tensor name");
  cursor.set_subject("tensor", name);
  if (name.empty() || name.size() > kMaxNameBytes) {
    cursor.fail_at(name_at, "a tensor name of ", name.size(), " bytes, need 1 to ", kMaxNameBytes);
  }
  tensor.name = name;
  const auto n_dims = cursor.read<std::uint32_t>("number of dimensions");
  if (n_dims > kMaxDims) {
    cursor.fail_at(cursor.position() - 4, n_dims, " dimensions, need at most ", kMaxDims);
  }
  tensor.ne.resize(n_dims);
  for (std::uint64_t& n : tensor.ne) n = cursor.read<std::uint64_t>("dimension");
  if (n_dims == 0) tensor.ne.push_back(1);  // a scalar
  tensor.type = read_qtype(cursor);
  measure(cursor, tensor);
  tensor.offset = cursor.read<std::uint64_t>("offset");
  if (tensor.offset % alignment != 0) {
    cursor.fail_at(cursor.position() - 8, "offset ", tensor.offset,
                   " is no multiple of the alignment ", alignment);
  }
  return tensor;
}

std::uint64_t align_up(std::uint64_t n, std::uint64_t alignment) {
  return (n + alignment - 1) & ~(alignment - 1);
}

// Whether a part whose directory ends at header_bytes is as long as one that is padded to this
// alignment, its last tensor or not. Offsets are from the start of the data.
bool has_alignment(const std::vector<TensorInfo>& tensors, std::uint64_t header_bytes,
                   std::uint64_t file_bytes, std::uint64_t alignment) {
  std::uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset % alignment != 0) return false;
    if (tensor.offset > file_bytes || tensor.n_bytes > file_bytes - tensor.offset) return false;
    end = std::max(end, tensor.offset + tensor.n_bytes);
  }
  const std::uint64_t data_start = align_up(header_bytes, alignment);
  return data_start + end == file_bytes || data_start + align_up(end, alignment) == file_bytes;
}

// The alignment of a later part that does not say it: the first part's (as the gguf package pads
// it) or the default (as llama.cpp's gguf-split does). A wrong guess would shift every weight.
std::uint64_t alignment_by_size(Cursor& cursor, const ParsedPart& part, std::uint64_t file_bytes,
                                std::uint64_t set_alignment) {
  const bool as_set = has_alignment(part.tensors, part.header_bytes, file_bytes, set_alignment);
  const bool as_default =
      has_alignment(part.tensors, part.header_bytes, file_bytes, kDefaultAlignment);
  const bool same_start =
      align_up(part.header_bytes, set_alignment) == align_up(part.header_bytes, kDefaultAlignment);
  if (part.tensors.empty() || (as_set && (same_start || !as_default))) return set_alignment;
  if (as_default && !as_set) return kDefaultAlignment;
  cursor.set_subject("", "");
  cursor.fail_here("the part has no key \"general.alignment\", and its ", file_bytes, " bytes fit ",
                   as_set ? "both " : "neither ", set_alignment, " (the first part's) ",
                   as_set ? "and " : "nor ", kDefaultAlignment,
                   " (the default): write the set anew with the key in each part");
}

// Turns offsets into offsets from the start of the file and checks that each tensor lies in it,
// apart from all others.
void place_tensors(Cursor& cursor, std::uint64_t alignment, std::uint64_t file_bytes,
                   std::vector<TensorInfo>& tensors) {
  cursor.set_subject("", "");
  const std::uint64_t data_start = align_up(cursor.position(), alignment);
  for (TensorInfo& tensor : tensors) {
    std::uint64_t end = 0;
    const bool wraps = __builtin_add_overflow(data_start, tensor.offset, &tensor.offset) ||
                       __builtin_add_overflow(tensor.offset, tensor.n_bytes, &end);
    if (wraps || end > file_bytes) {
      cursor.set_subject("tensor", tensor.name);
      if (wraps) cursor.fail_here("its offset does not fit 64 bits");
      cursor.fail_here("its ", tensor.n_bytes, " bytes lie at byte ", tensor.offset,
                       ", but the file ends ", end - file_bytes, " bytes too early (it has ",
                       file_bytes, "); is the download complete?");
    }
  }
  std::vector<std::uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return tensors[a].offset < tensors[b].offset;
  });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const TensorInfo& before = tensors[order[i - 1]];
    const TensorInfo& after = tensors[order[i]];
    if (before.offset + before.n_bytes > after.offset) {
      cursor.set_subject("tensor", after.name);
      cursor.fail_here("begins at byte ", after.offset, ", inside tensor ", quoted(before.name),
                       ", whose ", before.n_bytes, " bytes begin at byte ", before.offset);
    }
  }
}

}  // namespace

ParsedPart parse_part(std::span<const std::uint8_t> bytes, const std::string& file, TensorData data,
                      std::uint64_t set_alignment) {
  Cursor cursor(bytes, file);
  const Header header = read_header(cursor, bytes);
  ParsedPart part;
  part.version = header.version;

  part.metadata.reserve(header.n_keys);
  for (std::uint64_t i = 0; i < header.n_keys; ++i) {
    part.metadata.push_back(read_value(cursor, bytes));
    cursor.set_subject("", "");
  }
  part.by_key.resize(part.metadata.size());
  std::iota(part.by_key.begin(), part.by_key.end(), 0U);
  // Sorted rather than hashed: chosen keys cannot make it slow.
  std::sort(part.by_key.begin(), part.by_key.end(), [&](std::uint32_t a, std::uint32_t b) {
    return part.metadata[a].key() < part.metadata[b].key();
  });
  for (std::size_t i = 1; i < part.by_key.size(); ++i) {
    const std::string_view key = part.metadata[part.by_key[i]].key();
    if (key == part.metadata[part.by_key[i - 1]].key()) {
      cursor.fail_here("key ", quoted(key), " stands twice in the metadata");
    }
  }
  part.alignment = read_alignment(cursor, part);
  const bool is_unsaid = set_alignment != 0 && set_alignment != part.alignment &&
                         data == TensorData::kHere &&
                         find_value(part, "general.alignment") == nullptr;

  part.tensors.reserve(header.n_tensors);
  for (std::uint64_t i = 0; i < header.n_tensors; ++i) {
    part.tensors.push_back(
        read_tensor(cursor, is_unsaid ? std::min(part.alignment, set_alignment) : part.alignment));
    cursor.set_subject("", "");
  }
  part.header_bytes = cursor.position();
  if (is_unsaid) part.alignment = alignment_by_size(cursor, part, bytes.size(), set_alignment);
  const std::uint64_t file_bytes = data == TensorData::kHere ? bytes.size() : UINT64_MAX;
  place_tensors(cursor, part.alignment, file_bytes, part.tensors);
  return part;
}

const Value* find_value(const ParsedPart& part, std::string_view key) {
  const auto at = std::lower_bound(
      part.by_key.begin(), part.by_key.end(), key,
      [&](std::uint32_t index, std::string_view k) { return part.metadata[index].key() < k; });
  if (at == part.by_key.end() || part.metadata[*at].key() != key) return nullptr;
  return &part.metadata[*at];
}

}  // namespace moesaic::gguf
