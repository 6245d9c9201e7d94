// Reading and writing session files; the layout is in session_file.h.
#include "engine/session_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>

#include "base/digest.h"
#include "base/output_file.h"

namespace moesaic::engine {
namespace {

constexpr std::array<char, 8> kMagic = {'M', 'O', 'E', 'S', 'E', 'S', 'S', '1'};
// 1: knew the model by its headers alone, which other weights may share.
constexpr std::uint32_t kVersion = 2;
constexpr std::size_t kHeaderBytes = 8 + 4 + 4 + 8 + 8;
constexpr std::size_t kDigestBytes = 32;
constexpr std::uint32_t kMaxIdentity = 4096;
constexpr std::size_t kPiece = std::size_t{4} << 20U;  // between two looks at the cancel flag

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void io_error(const char* where, const std::string& path, const char* what) {
  fail<IoError>("[", where, "] ", path, ": ", what, ": ", std::strerror(errno));
}

template <typename T>
void put(std::vector<std::uint8_t>& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
}

template <typename T>
T get(const std::uint8_t* from) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(T{from[i]} << (8 * i));
  return value;
}

class Writer {
 public:
  Writer(OutputFile& file, const CancelFlag* cancel) : file_(file), cancel_(cancel) {}

  void write(std::span<const std::uint8_t> bytes) {
    while (!bytes.empty()) {
      if (cancel_ != nullptr) cancel_->check();
      const auto piece = bytes.first(std::min(bytes.size(), kPiece));
      digest_.update(piece.data(), piece.size());
      file_.write(piece);
      bytes = bytes.subspan(piece.size());
    }
  }
  void write_digest() {
    const Sha256Digest digest = digest_.finish();
    file_.write(digest);
  }

 private:
  OutputFile& file_;
  const CancelFlag* cancel_;
  Sha256 digest_;
};

class Reader {
 public:
  Reader(int fd, const std::string& path, const CancelFlag* cancel)
      : fd_(fd), path_(path), cancel_(cancel) {}

  void read(std::span<std::uint8_t> into, bool digested = true) {
    while (!into.empty()) {
      if (cancel_ != nullptr) cancel_->check();
      const ssize_t n = ::read(fd_, into.data(), std::min(into.size(), kPiece));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) io_error("Model.load_session", path_, "reading failed");
      if (n == 0) {
        fail<FormatError>("[Model.load_session] ", path_, ": it ends ", into.size(),
                          " bytes early; it was cut while it was read");
      }
      const auto done = static_cast<std::size_t>(n);
      if (digested) digest_.update(into.data(), done);
      into = into.subspan(done);
    }
  }
  Sha256Digest digest() { return digest_.finish(); }

 private:
  int fd_;
  const std::string& path_;
  const CancelFlag* cancel_;
  Sha256 digest_;
};

}  // namespace

void write_session(const std::string& path, const std::string& identity,
                   const Engine::SavedSession& session, const CancelFlag* cancel) {
  if (identity.size() > kMaxIdentity)
    fail<InternalError>("[Session.save] the identity is too long");
  // Readable by the owner only: it holds a conversation.
  OutputFile file("Session.save", path, OutputFile::Access::kOwnerOnly);
  std::vector<std::uint8_t> head;
  for (const char c : kMagic) head.push_back(static_cast<std::uint8_t>(c));
  put(head, kVersion);
  put(head, static_cast<std::uint32_t>(identity.size()));
  put(head, static_cast<std::uint64_t>(session.tokens.size()));
  put(head, static_cast<std::uint64_t>(session.kv.size()));
  for (const char c : identity) head.push_back(static_cast<std::uint8_t>(c));
  for (const std::int32_t token : session.tokens) put(head, static_cast<std::uint32_t>(token));
  Writer writer(file, cancel);
  writer.write(head);
  writer.write(session.kv);
  writer.write_digest();
  file.commit();
}

Engine::SavedSession read_session(const std::string& path, const EngineFacts& facts,
                                  const CancelFlag* cancel) {
  constexpr const char* kWhere = "[Model.load_session] ";
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a FIFO must not hang us
  if (fd.get() < 0) io_error("Model.load_session", path, "it cannot be opened");
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) io_error("Model.load_session", path, "it cannot be examined");
  if (!S_ISREG(info.st_mode)) {
    fail<IoError>(kWhere, path, ": it is not a regular file, need one written by Session.save");
  }
  const auto n_file = static_cast<std::uint64_t>(info.st_size);
  if (n_file < kHeaderBytes + kDigestBytes) {
    fail<FormatError>(kWhere, path, ": got ", n_file, " bytes, need at least ",
                      kHeaderBytes + kDigestBytes, "; it is not a whole session");
  }
  Reader reader(fd.get(), path, cancel);
  std::array<std::uint8_t, kHeaderBytes> head{};
  reader.read(head);
  if (std::memcmp(head.data(), kMagic.data(), kMagic.size()) != 0) {
    fail<FormatError>(kWhere, path, ": byte 0: need \"MOESESS1\"; it is not a session file");
  }
  const auto version = get<std::uint32_t>(&head[8]);
  if (version != kVersion) {
    fail<FormatError>(kWhere, path, ": byte 8: got version ", version, ", need ", kVersion,
                      version < kVersion ? ": an older release wrote it; run its tokens again and "
                                           "save that session"
                                         : ": a newer release wrote it; install that one");
  }
  const auto n_identity = get<std::uint32_t>(&head[12]);
  const auto n_tokens = get<std::uint64_t>(&head[16]);
  const auto n_kv = get<std::uint64_t>(&head[24]);
  const std::uint64_t rest = n_file - kHeaderBytes - kDigestBytes;
  if (n_identity > kMaxIdentity || n_identity > rest) {
    fail<FormatError>(kWhere, path, ": byte 12: got an identity of ", n_identity, " bytes");
  }
  if (n_tokens > static_cast<std::uint64_t>(facts.n_ctx)) {
    fail<FormatError>(kWhere, path, ": byte 16: got ", n_tokens,
                      " tokens, need at most n_ctx = ", facts.n_ctx,
                      "; load the model with a larger n_ctx");
  }
  // n_tokens is small by now: nothing below wraps.
  if (n_kv > rest || n_identity + 4 * n_tokens + n_kv != rest) {
    fail<FormatError>(kWhere, path, ": byte 24: identity, tokens and KV of ", n_identity, ", ",
                      4 * n_tokens, " and ", n_kv, " bytes are not the file's ", rest,
                      "; it is cut or damaged");
  }
  std::string identity(n_identity, '\0');
  reader.read({reinterpret_cast<std::uint8_t*>(identity.data()), identity.size()});
  if (identity != facts.identity) {
    fail<FormatError>(kWhere, path,
                      ": it was saved by another model or cache type, or with other weights: "
                      "got \"",
                      identity, "\", need \"", facts.identity, "\"");
  }
  if (n_kv != n_tokens * facts.kv_token_bytes) {
    fail<FormatError>(kWhere, path, ": byte 24: got ", n_kv, " bytes of KV, need ",
                      n_tokens * facts.kv_token_bytes, ", ", facts.kv_token_bytes, " for each of ",
                      n_tokens, " tokens");
  }
  Engine::SavedSession session;
  std::vector<std::uint8_t> raw(4 * n_tokens);
  reader.read(raw);
  session.kv.resize(n_kv);
  reader.read(session.kv);
  Sha256Digest written{};
  reader.read(written, /*digested=*/false);
  if (reader.digest() != written) {
    fail<FormatError>(kWhere, path, ": its SHA-256 digest does not match; it is damaged");
  }
  for (std::uint64_t i = 0; i < n_tokens; ++i) {
    const auto token = static_cast<std::int32_t>(get<std::uint32_t>(&raw[4 * i]));
    if (token < 0 || token >= facts.config.vocab) {
      fail<FormatError>(kWhere, path, ": token ", i, ": got ", token, ", need 0 to ",
                        facts.config.vocab - 1);
    }
    session.tokens.push_back(token);
  }
  return session;
}

}  // namespace moesaic::engine
