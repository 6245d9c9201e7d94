// Key files and derivations, over OpenSSL's libcrypto (HKDF-SHA256, HMAC-SHA256).
#include "net/key.h"

#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <new>

#include "base/errors.h"
#include "base/private_folder.h"

namespace moesaic::net {
namespace {

constexpr std::size_t kHexDigits = 64;

template <std::size_t N>
std::string hex(const std::array<std::uint8_t, N>& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

Secret parse_hex(std::string_view line, const std::string& where) {
  const auto value = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  Secret key{};
  bool good = line.size() == kHexDigits;
  for (std::size_t i = 0; good && i < key.size(); ++i) {
    const int high = value(line[2 * i]);
    const int low = value(line[2 * i + 1]);
    good = high >= 0 && low >= 0;
    key[i] = static_cast<std::uint8_t>(good ? high * 16 + low : 0);
  }
  // The text itself is not shown: it may be most of a key.
  if (!good) {
    fail<ArgumentError>(
        where, "a line of ", line.size(),
        " characters, need 64 hexadecimal digits: make a key with `moesaic keygen FILE`");
  }
  return key;
}

Secret hkdf(const Secret& key, std::string_view info) {
  const std::unique_ptr<EVP_KDF, decltype(&EVP_KDF_free)> kdf(
      EVP_KDF_fetch(nullptr, "HKDF", nullptr), EVP_KDF_free);
  const std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(
      EVP_KDF_CTX_new(kdf.get()), EVP_KDF_CTX_free);
  char digest[] = "SHA256";
  OSSL_PARAM params[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, const_cast<std::uint8_t*>(key.data()),
                                        key.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, const_cast<char*>(info.data()),
                                        info.size()),
      OSSL_PARAM_construct_end(),
  };
  Secret out{};
  if (!context || EVP_KDF_derive(context.get(), out.data(), out.size(), params) != 1) {
    fail<InternalError>("[key] HKDF failed in OpenSSL");
  }
  return out;
}

// HMAC-SHA256 under a key made for identities alone.
Secret identity_part(const Secret& key, std::string_view what,
                     std::span<const std::uint8_t> bytes) {
  Secret for_identities = hkdf(key, strcat("moesaic identity ", what, " v1"));
  Secret out{};
  unsigned int n = 0;
  const bool made = HMAC(EVP_sha256(), for_identities.data(), int{sizeof(Secret)}, bytes.data(),
                         bytes.size(), out.data(), &n) != nullptr;
  OPENSSL_cleanse(for_identities.data(), for_identities.size());
  if (!made) fail<InternalError>("[key] HMAC failed in OpenSSL");
  return out;
}

void fill_random(std::uint8_t* out, std::size_t n) {
  if (RAND_bytes(out, static_cast<int>(n)) != 1)
    fail<IoError>("[key] the system gives no random bytes");
}

// Zeroed before it is freed: it held a key.
struct Text {
  Text() = default;
  ~Text() { OPENSSL_cleanse(bytes, sizeof bytes); }
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;

  char bytes[4096];  // two keys and many comments
};

[[noreturn]] void io_error(const std::string& path, const char* what) {
  const int error = errno;
  fail<IoError>("[key] ", path, ": ", what, ": ", std::strerror(error));
}

std::size_t whole_pages(std::size_t n_bytes) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return (n_bytes + page - 1) / page * page;
}

}  // namespace

void* allocate_undumped(std::size_t n_bytes) {
  const std::size_t n = whole_pages(n_bytes);
  void* pages = ::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  (void)::madvise(pages, n, MADV_DONTDUMP);
  (void)::mlock(pages, n);  // the limit may be too low; swap is then as safe as it is
  return pages;
}

void free_undumped(void* pages, std::size_t n_bytes) noexcept {
  OPENSSL_cleanse(pages, n_bytes);
  (void)::munmap(pages, whole_pages(n_bytes));
}

ClusterKey ClusterKey::parse(std::string_view text, const std::string& source) {
  const std::string where = source.empty() ? "[key] " : "[key] " + source + ": ";
  ClusterKey key;
  key.keys_.reserve(2);  // growth would leave a copy behind
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    key.keys_.push_back(parse_hex(line, where));
  }
  if (key.keys_.empty() || key.keys_.size() > 2) {
    fail<ArgumentError>(where, "got ", key.keys_.size(),
                        " keys, need one, or two while keys are being changed: make one with "
                        "`moesaic keygen FILE`");
  }
  return key;
}

ClusterKey ClusterKey::read(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) io_error(path, "cannot be opened");
  struct stat status {};
  Text text;
  const bool stat_ok = fstat(fd, &status) == 0;
  std::size_t n_read = 0;
  ssize_t n = 1;
  while (n > 0 && n_read < sizeof text.bytes) {  // a pipe may give it in pieces
    n = ::read(fd, text.bytes + n_read, sizeof text.bytes - n_read);
    if (n > 0) n_read += static_cast<std::size_t>(n);
  }
  const int error = errno;
  ::close(fd);
  errno = error;
  if (!stat_ok || n < 0) io_error(path, "cannot be read");
  if (S_ISREG(status.st_mode) && (status.st_mode & 0077U) != 0) {
    fail<IoError>("[key] ", path, ": others may read it (mode ", std::oct, status.st_mode & 0777U,
                  "): run chmod 600 on it, and make a new key if this one was exposed");
  }
  if (S_ISREG(status.st_mode)) {
    const std::size_t slash = path.find_last_of('/');
    const std::string why = replaceable_by_others(
        slash == std::string::npos ? "." : path.substr(0, std::max<std::size_t>(slash, 1)));
    if (!why.empty()) fail<IoError>("[key] ", path, ": ", why);
  }
  if (n_read == sizeof text.bytes) {
    fail<ArgumentError>("[key] ", path, ": got more than ", n_read - 1,
                        " bytes, need a key file: make one with `moesaic keygen FILE`");
  }
  return parse(std::string_view(text.bytes, n_read), path);
}

void ClusterKey::generate(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) io_error(path, "a new key file cannot be made here");
  const std::string text = random().text();
  const bool written =
      ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  if (!written) {
    unlink(path.c_str());
    errno = error;
    io_error(path, "cannot be written");
  }
}

ClusterKey ClusterKey::random() {
  ClusterKey key;
  key.keys_.reserve(2);  // growth would leave a copy behind
  fill_random(key.keys_.emplace_back().data(), sizeof(Secret));
  return key;
}

std::string ClusterKey::text() const {
  std::string text;
  for (const Secret& key : keys_) text += hex(key) + "\n";
  return text;
}

std::string ClusterKey::key_id(int epoch) const {
  const Secret id = hkdf(at(epoch), "moesaic key id v1");
  return hex(id).substr(0, 16);
}

std::vector<std::uint8_t> ClusterKey::identity(int epoch, const wire::NodeId& dialler) const {
  std::vector<std::uint8_t> text(kIdentityBytes);
  const auto nonce = std::span(text).first<16>();
  fill_random(nonce.data(), nonce.size());
  const Secret mask = identity_part(at(epoch), "mask", nonce);
  std::transform(dialler.begin(), dialler.end(), mask.begin(), text.begin() + 16, std::bit_xor{});
  const Secret tag = identity_part(at(epoch), "tag", std::span(text).first(32));
  std::copy_n(tag.begin(), 16, text.begin() + 32);
  return text;
}

std::optional<ClusterKey::Claim> ClusterKey::open_identity(
    std::span<const std::uint8_t> identity) const {
  if (identity.size() != kIdentityBytes) return std::nullopt;
  for (int epoch = 0; epoch < n_keys(); ++epoch) {
    const Secret tag = identity_part(at(epoch), "tag", identity.first(32));
    if (CRYPTO_memcmp(tag.data(), identity.data() + 32, 16) != 0) continue;
    const Secret mask = identity_part(at(epoch), "mask", identity.first(16));
    Claim claim;
    claim.epoch = epoch;
    std::transform(mask.begin(), mask.begin() + 16, identity.begin() + 16, claim.dialler.begin(),
                   std::bit_xor{});
    return claim;
  }
  return std::nullopt;
}

Secret ClusterKey::psk(int epoch, const wire::NodeId& dialler) const {
  return hkdf(at(epoch), "moesaic psk v1, dialled by " + hex(dialler));
}

wire::Digest ClusterKey::proof(int epoch, const wire::NodeId& dialler, const wire::NodeId& listener,
                               const Secret& exporter) const {
  const Secret key = hkdf(at(epoch), "moesaic listener proof v1");
  const std::string text = hex(dialler) + hex(listener) + hex(exporter);
  wire::Digest out{};
  unsigned int n = 0;
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(text.data()), text.size(), out.data(),
           &n) == nullptr) {
    fail<InternalError>("[key] HMAC failed in OpenSSL");
  }
  return out;
}

wire::NodeId random_node_id() {
  wire::NodeId id{};
  fill_random(id.data(), id.size());
  return id;
}

std::string to_hex(const wire::NodeId& id) { return hex(id); }

bool equal_constant_time(const wire::Digest& a, const wire::Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace moesaic::net
