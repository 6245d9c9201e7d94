// SHA-256 through OpenSSL's own functions, which pick the CPU's SHA instructions. Its EVP interface
// would do but for one thing: there a sum that is under way cannot be kept and taken up by another
// process. That is why functions are used that OpenSSL 3 calls deprecated.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/digest.h"

#include <openssl/sha.h>

#include <algorithm>
#include <iterator>

#include "base/errors.h"

namespace moesaic {

struct Sha256::Impl {
  SHA256_CTX context{};
  Impl() { start(); }
  void start() {
    if (SHA256_Init(&context) != 1) fail<InternalError>("[digest] OpenSSL offers no SHA-256");
  }
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

Sha256::Sha256(const Sha256State& state) : Sha256() {
  if (state.n_bytes % SHA256_CBLOCK != 0) {
    fail<ArgumentError>("[digest] a state of ", state.n_bytes, " bytes, need whole blocks of ",
                        SHA256_CBLOCK);
  }
  if (state.n_bytes == 0) return;
  SHA256_CTX& context = impl_->context;
  std::copy(state.words.begin(), state.words.end(), std::begin(context.h));
  const std::uint64_t n_bits = state.n_bytes * 8;
  context.Nl = static_cast<std::uint32_t>(n_bits);
  context.Nh = static_cast<std::uint32_t>(n_bits >> 32);
}

Sha256State Sha256::state() const {
  const SHA256_CTX& context = impl_->context;
  Sha256State state;
  std::copy(std::begin(context.h), std::end(context.h), state.words.begin());
  state.n_bytes = ((std::uint64_t{context.Nh} << 32 | context.Nl) / 8) - context.num;
  return state;
}

void Sha256::update(const void* bytes, std::size_t n_bytes) {
  if (SHA256_Update(&impl_->context, bytes, n_bytes) != 1) {
    fail<InternalError>("[digest] SHA-256 update failed");
  }
}

Sha256Digest Sha256::finish() {
  Sha256Digest digest{};
  if (SHA256_Final(digest.data(), &impl_->context) != 1) {
    fail<InternalError>("[digest] SHA-256 did not end");
  }
  impl_->start();
  return digest;
}

Sha256Digest sha256(const void* bytes, std::size_t n_bytes) {
  Sha256 sha;
  sha.update(bytes, n_bytes);
  return sha.finish();
}

std::string to_hex(const Sha256Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * digest.size());
  for (const std::uint8_t byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace moesaic
