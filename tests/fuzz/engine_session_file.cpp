// libFuzzer target: any bytes as a session file of a small model. Either a FormatError or a session
// that holds exactly the file's tokens and KV, within 10 ms and without a single allocation above
// twice the input and 1 MB. The first byte is no part of the file: when it is odd, the digest at
// the end is made right, which no mutation could do. Seeds: corpus/engine_session_file/
// (make_session_corpus.py).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/errors.h"
#include "check.h"
#include "engine/session_file.h"

namespace {

using moesaic::engine::Engine;
using moesaic::engine::EngineFacts;
using moesaic::fuzz::violated;

constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kDigestBytes = 32;

// The model that make_session_corpus.py writes for: 12 values of KV a token.
EngineFacts small_model() {
  EngineFacts facts;
  facts.n_ctx = 64;
  facts.identity = "fuzz";
  facts.config.n_layers = 2;
  facts.config.vocab = 1000;
  facts.kv_token_bytes = 24;  // 2 layers of a latent row of 6 values of 16 bits
  return facts;
}

// Of all but the last 32 bytes, where it belongs.
std::vector<std::uint8_t> digest_of(const std::vector<std::uint8_t>& file) {
  moesaic::Sha256 digest;
  digest.update(file.data(), file.size() - kDigestBytes);
  const auto right = digest.finish();
  return {right.begin(), right.end()};
}

// What was read is what lies there: identity, tokens, KV, digest, and nothing else.
void compare(const Engine::SavedSession& session, const std::vector<std::uint8_t>& file,
             const EngineFacts& facts) {
  if (std::memcmp(&file[kHeaderBytes], facts.identity.data(), facts.identity.size()) != 0) {
    violated("the session of another model");
  }
  if (digest_of(file) != std::vector<std::uint8_t>(file.end() - kDigestBytes, file.end())) {
    violated("a wrong digest went through");
  }
  const std::size_t n_tokens = session.tokens.size();
  const std::size_t tokens_at = kHeaderBytes + facts.identity.size();
  const std::size_t kv_at = tokens_at + 4 * n_tokens;
  if (kv_at + session.kv.size() + kDigestBytes != file.size()) violated("bytes left over");
  if (session.kv.size() != 24 * n_tokens) {
    violated("KV of another size than its tokens need");
  }
  for (std::size_t i = 0; i < n_tokens; ++i) {
    std::uint32_t there = 0;
    for (std::size_t k = 0; k < 4; ++k) {
      there |= static_cast<std::uint32_t>(file[tokens_at + 4 * i + k]) << (8 * k);
    }
    if (there >= 1000 || static_cast<std::uint32_t>(session.tokens[i]) != there) {
      violated("another token than the file's");
    }
  }
  if (!session.kv.empty() && std::memcmp(session.kv.data(), &file[kv_at], session.kv.size()) != 0) {
    violated("other KV than the file's");
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moesaic::fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const EngineFacts facts = small_model();
  static const moesaic::fuzz::MemoryFile memory;
  if (size == 0) return 0;
  std::vector<std::uint8_t> file(data + 1, data + size);
  if (data[0] % 2 == 1 && file.size() >= kDigestBytes) {
    const std::vector<std::uint8_t> right = digest_of(file);
    std::copy(right.begin(), right.end(), file.end() - kDigestBytes);
  }
  memory.fill(file);
  const moesaic::fuzz::Stopwatch stopwatch;
  try {
    const Engine::SavedSession session = moesaic::engine::read_session(memory.path(), facts);
    compare(session, file, facts);
  } catch (const moesaic::FormatError& error) {
    if (std::strlen(error.what()) == 0) violated("an error that says nothing");
  }
  moesaic::fuzz::check_allocations(size);
  return 0;
}
