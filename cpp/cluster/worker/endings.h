// Deployments on their way out. Each is freed when its thread has ended; one whose thread stands
// still (a page that a dead disk does not give) waits here and holds up nothing else. What they
// have taken counts until it is freed. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace moesaic::cluster {

class Deployment;

class Endings {
 public:
  // stuck: told once of a deployment whose thread has not ended for half a minute.
  explicit Endings(std::function<void(const std::string& text)> stuck);
  ~Endings();  // waits for all
  Endings(const Endings&) = delete;
  Endings& operator=(const Endings&) = delete;

  void add(std::shared_ptr<Deployment> deployment);  // asks it to stop
  std::uint64_t taken_bytes() const;
  bool any() const;
  // Returns when none is left, or after that time.
  void wait(std::chrono::milliseconds patience) const;

 private:
  struct Ending {
    std::shared_ptr<Deployment> deployment;
    std::chrono::steady_clock::time_point since;
    bool told = false;
  };
  void main();

  const std::function<void(const std::string&)> stuck_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<Ending> endings_;
  bool ends_ = false;
  std::thread thread_;  // last
};

}  // namespace moesaic::cluster
