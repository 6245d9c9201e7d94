// libFuzzer target: any bytes as a session file of a small model. Either a FormatError or a session
// that holds exactly the file's tokens and KV, within 10 ms and without a single allocation above
// twice the input and 1 MB. The first byte is no part of the file: when it is odd, the digest at
// the end is made right, which no mutation could do. Seeds: corpus/engine_session_file/
// (make_session_corpus.py).
#include <sanitizer/allocator_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/errors.h"
#include "engine/session_file.h"

namespace {

using moesaic::engine::Engine;
using moesaic::engine::EngineFacts;

constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kDigestBytes = 32;

std::size_t g_largest_allocation = 0;

// Sanitizers at -O1 slow the code down about so much; measured in CPU time, so that a busy machine
// does not matter.
constexpr double kSlowdown = 5;

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

[[noreturn]] void violated(const char* what) {
  std::fprintf(stderr, "property violated: %s\n", what);
  std::abort();
}

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

// A file without a name: its path goes through the reader's own open().
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("session", MFD_CLOEXEC)) {
    if (fd_ < 0) violated("no memfd");
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }
  const std::string& path() const { return path_; }
  void fill(const std::vector<std::uint8_t>& bytes) const {
    const auto n = static_cast<ssize_t>(bytes.size());
    if (ftruncate(fd_, 0) != 0 || pwrite(fd_, bytes.data(), bytes.size(), 0) != n) {
      violated("no memory file");
    }
  }

 private:
  int fd_;
  std::string path_;
};

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
  __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t n_bytes) {
        g_largest_allocation = std::max(g_largest_allocation, n_bytes);
      },
      [](const volatile void*) {});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const EngineFacts facts = small_model();
  static const MemoryFile memory;
  if (size == 0) return 0;
  std::vector<std::uint8_t> file(data + 1, data + size);
  if (data[0] % 2 == 1 && file.size() >= kDigestBytes) {
    const std::vector<std::uint8_t> right = digest_of(file);
    std::copy(right.begin(), right.end(), file.end() - kDigestBytes);
  }
  memory.fill(file);
  g_largest_allocation = 0;
  const double start = cpu_seconds();
  try {
    const Engine::SavedSession session = moesaic::engine::read_session(memory.path(), facts);
    if (cpu_seconds() - start > 0.010 * kSlowdown) violated("more than 10 ms");
    compare(session, file, facts);
  } catch (const moesaic::FormatError& error) {
    if (std::strlen(error.what()) == 0) violated("an error that says nothing");
  }
  if (g_largest_allocation > 2 * size + (std::size_t{1} << 20)) violated("too large an allocation");
  return 0;
}
