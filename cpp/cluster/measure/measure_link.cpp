// See measure_link.h.
#include "cluster/measure/measure_link.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{10};
constexpr std::chrono::milliseconds kFlagPoll{50};

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

LinkRates measure_link(net::NetThread& net, net::LinkOptions options, const std::string& address,
                       const CancelFlag* cancel) {
  constexpr int kSmall = 20;
  constexpr std::size_t kFrameBytes = (std::size_t{4} << 20U) - 4096;  // within a blob's limit
  constexpr std::size_t kFirstBytes = std::size_t{32} << 10U;
  constexpr std::size_t kMostBytes = std::size_t{16} << 20U;
  constexpr double kEnoughS = 0.02;
  struct Answers {
    std::mutex mutex;
    std::condition_variable changed;
    int n = 0;
    bool closed = false;
  };
  const auto answers = std::make_shared<Answers>();
  options.role = wire::Role::kObserver;
  const auto link = net::dial(net, options, address, net::milliseconds(5000), cancel);
  link->start({.on_message =
                   [answers](net::Incoming&&) {
                     const std::scoped_lock lock(answers->mutex);
                     ++answers->n;
                     answers->changed.notify_all();
                   },
               .on_closed =
                   [answers](std::exception_ptr) {
                     const std::scoped_lock lock(answers->mutex);
                     answers->closed = true;
                     answers->changed.notify_all();
                   },
               .progress = {}});
  const auto wait_for = [&](int n) {
    std::unique_lock lock(answers->mutex);
    const auto end = Clock::now() + kPatience;
    const auto over = [&] { return answers->n >= n || answers->closed; };
    while (!answers->changed.wait_for(lock, kFlagPoll, over) && Clock::now() < end) {
      if (cancel != nullptr) cancel->check();
    }
    const bool in_time = over();
    if (answers->n < n) {
      if (in_time) fail<NetError>("[cluster] the link to ", address, " was closed while measured");
      fail<DeadlineError>("[cluster] ", address, " did not answer for ", kPatience.count(), " s");
    }
  };
  LinkRates rates;
  rates.rtt_s = 1e9;
  for (int i = 0; i < kSmall; ++i) {
    const auto begin = Clock::now();
    link->send(wire::Blob{static_cast<std::uint64_t>(i)});
    wait_for(i + 1);
    rates.rtt_s = std::min(rates.rtt_s, seconds(Clock::now() - begin));
  }
  // Twice as much each time, until it takes long enough to be measured: a slow link is not kept
  // busy for seconds.
  int n = kSmall;
  for (std::size_t n_bytes = kFirstBytes; n_bytes <= kMostBytes; n_bytes *= 2) {
    const auto begin = Clock::now();
    for (std::size_t left = n_bytes; left > 0; ++n) {
      const std::size_t size = std::min(left, kFrameBytes);
      link->send(wire::Blob{static_cast<std::uint64_t>(n)}, std::vector<std::uint8_t>(size));
      left -= size;
    }
    wait_for(n);
    const double took = std::max(seconds(Clock::now() - begin) - rates.rtt_s, 1e-6);
    rates.bytes_per_s = static_cast<double>(n_bytes) / took;
    if (took > kEnoughS) break;
  }
  link->close();
  return rates;
}

}  // namespace moesaic::cluster
