// See failpoint.h.
#include "base/failpoint.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <thread>

#include "base/errors.h"

namespace moesaic::failpoint {
namespace {

constexpr std::array<const char*, static_cast<std::size_t>(Site::kCount)> kNames{
    "load begin",    "load obtain", "load opened",   "load mapped", "load stage",
    "load done",     "task queued", "task begin",    "run begin",   "run end",
    "finish run",    "send result", "send captures", "run ahead",   "read rows",
    "KV op",         "KV restore",  "join ring",     "pass on",     "tell coordinator",
    "stage input",   "stage claim", "stage forward", "stage layer", "stage commit",
    "stage results", "ring dial",   "ring load",     "ring join",   "ring send",
    "ring event",    "ring next"};

std::atomic<Failure> failure_wanted{Failure::kException};
std::atomic<int> passes_left{0};
std::atomic<int> n_wanted{0};
std::atomic<bool> fired{false};
std::atomic<int> n_disarmed{0};

}  // namespace

std::atomic<int> armed{kNone};

const char* name(Site site) { return kNames.at(static_cast<std::size_t>(site)); }

void arm(Site site, Failure failure, int n) {
  armed = kNone;
  failure_wanted = failure;
  passes_left = n_wanted = n;
  fired = false;
  armed = static_cast<int>(site);
}

void disarm() {
  armed = kNone;
  ++n_disarmed;
}

bool has_fired() { return fired; }

int n_passed() { return n_wanted - std::max(passes_left.load(), 0); }

void fire() {
  if (passes_left.fetch_sub(1) > 0) return;
  const int site = armed.exchange(kNone);
  if (site == kNone) return;  // another thread was first
  const int before = n_disarmed;
  fired = true;
  if (failure_wanted.load() == Failure::kStall) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (n_disarmed == before && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return;
  }
  if (failure_wanted.load() == Failure::kBadAlloc) throw std::bad_alloc();
  fail<InternalError>("[failpoint] ", name(static_cast<Site>(site)));
}

}  // namespace moesaic::failpoint
