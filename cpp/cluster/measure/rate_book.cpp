// See rate_book.h. A file is "MSRATES1", the key as text (one line each), "\n", both rates as
// little-endian doubles, SHA-256 of all that; its name is the digest of the key.
#include "cluster/measure/rate_book.h"

#include <fcntl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <vector>

#include "base/digest.h"
#include "cluster/weights/digest_book.h"

namespace moesaic::cluster {
namespace {

constexpr const char* kMagic = "MSRATES1";  // with the format's number
constexpr std::uint64_t kMaxBytes = 4096;
// What no machine of today comes near: such a number is damage, whatever the digest says.
constexpr double kLeastRate = 1e6;
constexpr double kMostRate = 1e18;

// Lines must stay lines.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

bool is_plausible(double rate) { return rate >= kLeastRate && rate <= kMostRate; }

}  // namespace

std::string processor_model() {
  // x86 says a name; ARM says who made it and which part it is, here of the first core.
  constexpr const char* kLines[] = {"model name", "CPU implementer", "CPU part", "CPU variant"};
  std::string model;
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line) && !line.empty();) {
    for (const char* wanted : kLines) {
      const std::size_t colon = line.find(": ");
      if (line.starts_with(wanted) && colon != std::string::npos) {
        model = strcat(model, model.empty() ? "" : " ", line.substr(colon + 2));
      }
    }
  }
  return model;
}

RateBook::RateBook(std::string folder, RateKey key, FileOps& ops, Log log)
    : folder_(std::move(folder)), key_(std::move(key)), ops_(ops), log_(std::move(log)) {}

std::string RateBook::text() const {
  return strcat(kMagic, "\n", one_line(key_.release), "\n", one_line(key_.isa), "\n",
                one_line(key_.processor), "\n", key_.threads, "\n");
}

std::string RateBook::path() const {
  if (folder_.empty()) return "";
  const std::string key = text();
  return strcat(folder_, "/", to_hex(sha256(key.data(), key.size())), ".rates");
}

std::optional<Rates> RateBook::find() const {
  if (folder_.empty()) return std::nullopt;
  const std::string file = path();
  std::vector<std::uint8_t> bytes;
  try {
    const Fd fd = open_file(ops_, file, O_RDONLY | O_NONBLOCK);
    bytes.resize(std::min(file_state(fd.get(), file).size, kMaxBytes));
    read_at(ops_, fd.get(), bytes, 0, file);
  } catch (const IoError&) {
    return std::nullopt;
  }
  const std::string head = text();
  Rates rates;
  const std::size_t body = head.size() + 2 * sizeof(double);
  if (bytes.size() != body + sizeof(Sha256Digest) ||
      !std::equal(head.begin(), head.end(), bytes.begin())) {
    return std::nullopt;
  }
  const Sha256Digest sum = sha256(bytes.data(), body);
  std::memcpy(&rates.read_bytes_per_s, bytes.data() + head.size(), sizeof(double));
  std::memcpy(&rates.matmul_ops_per_s, bytes.data() + head.size() + sizeof(double), sizeof(double));
  const bool is_whole =
      std::equal(sum.begin(), sum.end(), bytes.begin() + static_cast<std::ptrdiff_t>(body));
  if (!is_whole || !is_plausible(rates.read_bytes_per_s) || !is_plausible(rates.matmul_ops_per_s)) {
    return std::nullopt;
  }
  return rates;
}

void RateBook::add(const Rates& rates) const {
  if (folder_.empty()) return;
  const std::string head = text();
  std::vector<std::uint8_t> bytes(head.begin(), head.end());
  bytes.resize(head.size() + 2 * sizeof(double));
  std::memcpy(bytes.data() + head.size(), &rates.read_bytes_per_s, sizeof(double));
  std::memcpy(bytes.data() + head.size() + sizeof(double), &rates.matmul_ops_per_s, sizeof(double));
  const Sha256Digest sum = sha256(bytes.data(), bytes.size());
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  try {
    make_folder(folder_);
    replace_file(ops_, path(), bytes);
  } catch (const IoError& error) {
    log_("rates", strcat("rates are not remembered for the next start: ", error.what()));
  }
}

}  // namespace moesaic::cluster
