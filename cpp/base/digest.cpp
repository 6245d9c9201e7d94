// SHA-256 through OpenSSL's EVP interface, which picks the CPU's SHA instructions.
#include "base/digest.h"

#include <openssl/evp.h>

#include "base/errors.h"

namespace moesaic {

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  Impl() = default;
  ~Impl() { EVP_MD_CTX_free(context); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  void start() {
    if (context == nullptr || EVP_DigestInit_ex(context, EVP_sha256(), nullptr) != 1) {
      fail<InternalError>("[digest] OpenSSL offers no SHA-256");
    }
  }
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) { impl_->start(); }
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(const void* bytes, std::size_t n_bytes) {
  if (EVP_DigestUpdate(impl_->context, bytes, n_bytes) != 1) {
    fail<InternalError>("[digest] SHA-256 update failed");
  }
}

Sha256Digest Sha256::finish() {
  Sha256Digest digest{};
  unsigned int n_bytes = 0;
  if (EVP_DigestFinal_ex(impl_->context, digest.data(), &n_bytes) != 1 ||
      n_bytes != digest.size()) {
    fail<InternalError>("[digest] SHA-256 did not end");
  }
  impl_->start();
  return digest;
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
