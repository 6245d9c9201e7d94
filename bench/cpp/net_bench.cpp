// bench_net [--seconds 2] [--hop 14336]: what a link costs on loopback, plain and under TLS. One
// JSON line per figure: a hop (a Run frame of --hop bytes there, its Tokens back, so half of the
// time there and back), and bulk (Blob frames of 4 MiB one way). Beside them what the same bytes
// cost through a bare blocking socket, which is this machine's ceiling.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/connection.h"

namespace {

using namespace moesaic;
using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::uint8_t>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void print_times(const char* what, const char* transport, std::size_t n_bytes,
                 std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto at = [&](double share) {
    return 1e6 * seconds[static_cast<std::size_t>(share * static_cast<double>(seconds.size() - 1))];
  };
  std::printf(
      "{\"bench\": \"%s\", \"transport\": \"%s\", \"bytes\": %zu, \"n\": %zu, \"median_us\": %.1f, "
      "\"p99_us\": %.1f}\n",
      what, transport, n_bytes, seconds.size(), at(0.5), at(0.99));
}

void print_rate(const char* transport, double bytes, double seconds) {
  std::printf("{\"bench\": \"bulk\", \"transport\": \"%s\", \"gb_per_s\": %.3f}\n", transport,
              1e-9 * bytes / seconds);
}

// Two connected TCP sockets on loopback.
std::pair<int, int> socket_pair() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t n = sizeof at;
  const int dialler = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&at), n) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&at), &n) != 0 ||
      connect(dialler, reinterpret_cast<sockaddr*>(&at), n) != 0) {
    std::perror("loopback");
    std::exit(1);
  }
  const int accepted = accept(listener, nullptr, nullptr);
  close(listener);
  const int one = 1;
  for (const int fd : {dialler, accepted}) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  return {dialler, accepted};
}

bool send_all(int fd, const Bytes& bytes) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t n = send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (n <= 0) return false;
    at += static_cast<std::size_t>(n);
  }
  return true;
}

bool receive_all(int fd, Bytes& bytes) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t n = recv(fd, bytes.data() + at, bytes.size() - at, 0);
    if (n <= 0) return false;
    at += static_cast<std::size_t>(n);
  }
  return true;
}

void bench_bare(double seconds, std::size_t hop_bytes) {
  {
    const auto [near, far] = socket_pair();
    std::thread echo([far = far, hop_bytes] {
      Bytes hop(hop_bytes);
      const Bytes back(64);
      while (receive_all(far, hop) && send_all(far, back)) {
      }
    });
    const Bytes hop(hop_bytes);
    Bytes back(64);
    std::vector<double> times;
    for (const auto start = Clock::now(); seconds_since(start) < seconds;) {
      const auto one = Clock::now();
      if (!send_all(near, hop) || !receive_all(near, back)) break;
      times.push_back(seconds_since(one) / 2);
    }
    shutdown(near, SHUT_RDWR);
    echo.join();
    close(near);
    close(far);
    print_times("hop", "bare socket", hop_bytes, std::move(times));
  }
  const auto [near, far] = socket_pair();
  double received = 0;
  std::thread sink([far = far, &received] {
    Bytes buffer(4U << 20);
    while (receive_all(far, buffer)) received += static_cast<double>(buffer.size());
  });
  const Bytes blob(4U << 20);
  const auto start = Clock::now();
  while (seconds_since(start) < seconds && send_all(near, blob)) {
  }
  shutdown(near, SHUT_WR);
  sink.join();
  print_rate("bare socket", received, seconds_since(start));
  close(near);
  close(far);
}

void bench_link(double seconds, std::size_t hop_bytes, bool encrypted) {
  const char* const transport = encrypted ? "TLS link" : "plain link";
  net::NetThread near_thread;  // as two processes would have
  net::NetThread far_thread;
  net::LinkOptions options;
  if (encrypted) options.key = net::ClusterKey::random();
  std::atomic<std::uint64_t> received{0};
  const auto listener = net::listen(far_thread, options, "127.0.0.1:0",
                                    {.accepted = [&](std::shared_ptr<net::Connection> link) {
                                      link->set_activation_limit(1U << 20);
                                      link->start({.on_message = [&, link](net::Incoming&& in) {
                                        received += in.payload.size();
                                        if (const auto* run = std::get_if<wire::Run>(&in.message)) {
                                          link->send(wire::Tokens{run->step, 0, {1}});
                                        }
                                      }});
                                    }});
  options.self = net::random_node_id();
  const auto link = net::dial(near_thread, options, listener->address());
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t answered = 0;
  link->start({.on_message = [&](net::Incoming&& in) {
    if (const auto* tokens = std::get_if<wire::Tokens>(&in.message)) {
      const std::lock_guard lock(mutex);
      answered = tokens->step;
      changed.notify_one();
    }
  }});
  std::vector<double> times;
  std::uint64_t step = 0;
  for (const auto start = Clock::now(); seconds_since(start) < seconds;) {
    wire::Run run;
    run.step = ++step;
    const auto one = Clock::now();
    link->send(run, Bytes(hop_bytes), 1);
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return answered == step; });
    times.push_back(seconds_since(one) / 2);
  }
  print_times("hop", transport, hop_bytes, std::move(times));

  received = 0;
  std::uint64_t sent = 0;
  const auto start = Clock::now();
  while (seconds_since(start) < seconds) {
    link->send(wire::Blob{1}, Bytes(4U << 20));
    sent += 4U << 20;
  }
  while (received < sent) std::this_thread::sleep_for(std::chrono::microseconds(100));
  print_rate(transport, static_cast<double>(sent), seconds_since(start));
  std::printf("{\"bench\": \"ping\", \"transport\": \"%s\", \"us\": %lld}\n", transport,
              static_cast<long long>(link->round_trip().count()));
  link->close();
  link->wait_closed(std::chrono::milliseconds(2000));
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 2;
  std::size_t hop_bytes = 14336;  // a row of 3,584 floats
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--seconds") seconds = std::atof(argv[i + 1]);
    if (name == "--hop") hop_bytes = static_cast<std::size_t>(std::atoll(argv[i + 1]));
  }
  bench_bare(seconds, hop_bytes);
  for (const bool encrypted : {false, true}) bench_link(seconds, hop_bytes, encrypted);
  return 0;
}
