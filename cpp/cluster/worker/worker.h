// A worker: a long-lived process's part of a cluster. It listens, keeps weights between
// coordinators, runs its layers for any number of deployments, and passes hidden rows on. Threads:
// one for the net (pings included; a deployment's thread serves in its place while it waits), one
// for each deployment (it loads, then computes), one for measurements and probes, one for what
// ends. Not for starting processes or reading command lines: that is Python's.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "net/connection.h"

namespace moesaic::cluster {

// Numbers stay numbers in --log-json.
using LogValue = std::variant<std::string, std::int64_t, double>;

// One line of a worker's log. `fields` are for --log-json.
struct LogEvent {
  std::string event;  // "ready", "coordinator", "load", "loaded", "lost", "refused", ...
  std::string text;   // a whole sentence for people
  std::vector<std::pair<std::string, LogValue>> fields;
};

struct WorkerOptions {
  std::string listen = "127.0.0.1:0";
  std::string advertise;  // how others are to dial it; empty: the address it listens on
  std::optional<net::ClusterKey> key;
  bool plain_beyond_loopback = false;
  std::string models_dir;          // searched for files by name; empty: none
  std::string cache_dir;           // pulled slices, digests, rates; empty: nothing is kept
  std::uint64_t cache_bytes = 0;   // of the cache; 0: what the disk has, less 5 % of it
  std::uint64_t memory_bytes = 0;  // that deployments may use; 0: what is free now, less headroom
  int threads = 0;                 // 0: those the process may use
  // Of this machine, for plans; 0: remembered in the cache, or measured when a coordinator asks.
  double read_bytes_per_s = 0;
  double matmul_ops_per_s = 0;
  // What one user may compute while others wait, at the ends of layers.
  std::chrono::milliseconds turn{5};
  // Each costs a thread or descriptors: a member gone bad must not take all of them. One source (an
  // IPv4 address, 64 bits of an IPv6 address) may have half of either.
  std::size_t most_links = 1024;  // that peers have dialled
  std::size_t most_deployments = 128;
  std::string backend = "auto";
  std::string release;
  // What else the line "ready" says: where the cache is, how many models were found.
  std::string ready_text;
  std::vector<std::pair<std::string, LogValue>> ready_fields;
  std::function<void(const LogEvent&)> log;  // from any thread, one call at a time
};

class Worker {
 public:
  // Listens when it returns. Throws ArgumentError, NetError, IoError.
  static std::unique_ptr<Worker> start(WorkerOptions options);
  virtual ~Worker() = default;              // stop(), and waits for its threads
  virtual std::string address() const = 0;  // as advertised
  // Says goodbye to everybody and ends all work. Returns at once; idempotent; any thread.
  virtual void stop() = 0;
  virtual bool stopped() const = 0;
};

}  // namespace moesaic::cluster
