// Places where tests make the code fail on purpose: an exception, or the allocation failure that
// any call may meet. One relaxed load where nothing is armed. Only code of this process can arm a
// site (there is no environment variable, no option and no message that does). Not for the inner
// loops of kernels; the system calls of file code have their own (cluster/weights/file_ops.h).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace moesaic::failpoint {

enum class Site : std::uint8_t {
  // A worker's deployment, while it loads:
  kLoadBegin,
  kLoadObtain,
  kLoadOpened,
  kLoadMapped,
  kLoadStage,
  kLoadDone,
  // ... while it runs:
  kTaskQueued,
  kTaskBegin,
  kRunBegin,
  kRunEnd,
  kFinishRun,
  kSendResult,
  kSendCaptures,
  kRunAhead,
  kReadRows,
  kKvOp,
  kKvRestore,
  kJoinRing,
  kPassOn,
  kTellCoordinator,
  // Its stage:
  kStageInput,
  kStageClaim,
  kStageForward,
  kStageLayer,
  kStageCommit,
  kStageResults,
  // The coordinator's ring:
  kRingDial,
  kRingLoad,
  kRingJoin,
  kRingSend,
  kRingEvent,
  kRingNext,
  kCount
};

const char* name(Site site);

// kStall: the thread stands still there, as in a page fault that a dead disk does not answer, until
// disarm() (at most a minute).
enum class Failure : std::uint8_t { kException, kBadAlloc, kStall };

// The n-th passing of `site` from now on fails (0: the next one), once. One site at a time.
void arm(Site site, Failure failure, int n = 0);
void disarm();     // and lets go who stands still
bool has_fired();  // since it was armed
int n_passed();    // how often the site was passed since it was armed, without failing

inline constexpr int kNone = -1;
extern std::atomic<int> armed;  // a Site, or kNone
void fire();

// Throws InternalError or std::bad_alloc, or stands still, where this site is armed and its turn
// has come.
inline void pass(Site site) {
  if (armed.load(std::memory_order_relaxed) == static_cast<int>(site)) [[unlikely]] {
    fire();
  }
}

}  // namespace moesaic::failpoint
