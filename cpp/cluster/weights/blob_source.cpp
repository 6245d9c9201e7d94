// See blob_source.h.
#include "cluster/weights/blob_source.h"

#include <chrono>
#include <utility>

#include "base/errors.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPollCancel = 20ms;

// What a peer's refusal is here. It is about the weights or about the peer, never about this side:
// only "not here" sends the caller to somebody else for the same bytes.
[[noreturn]] void rethrow(const std::string& peer, const wire::ErrorReply& reply) {
  const std::string text = strcat("[weights] ", peer, ": ", net::printable(reply.text));
  if (reply.kind == wire::ErrorKind::kIo) throw IoError(text);
  if (reply.kind == wire::ErrorKind::kDeadline) throw DeadlineError(text);
  throw NetError(text);
}

}  // namespace

LinkSource::LinkSource(std::shared_ptr<net::Connection> link, std::string name,
                       net::milliseconds deadline)
    : link_(std::move(link)), name_(std::move(name)), deadline_(deadline) {}

void LinkSource::throw_lost() const {
  if (why_) std::rethrow_exception(why_);
  fail<NetError>("[weights] ", name_, ": the link has been closed");
}

template <typename M>
LinkSource::Answer LinkSource::ask(M request, const CancelFlag* cancel) {
  {
    const std::lock_guard lock(mutex_);
    if (is_lost_) throw_lost();  // whatever the link would still answer
    request.request = kSourceRequest | ++next_;
    waiting_[request.request];
  }
  try {
    link_->send(request);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    waiting_.erase(request.request);
    throw;
  }
  Answer answer = wait(request.request, cancel);
  if (answer.error &&
      !(std::is_same_v<M, wire::ManifestRequest> && answer.error->kind == wire::ErrorKind::kIo)) {
    rethrow(name_, *answer.error);
  }
  return answer;
}

LinkSource::Answer LinkSource::wait(std::uint64_t id, const CancelFlag* cancel) {
  const auto end = Clock::now() + deadline_;
  std::unique_lock lock(mutex_);
  const auto take_away = [&] {
    Answer answer = std::move(waiting_[id]);
    waiting_.erase(id);
    return answer;
  };
  for (;;) {
    if (waiting_[id].here) return take_away();
    if (is_lost_) {
      take_away();
      throw_lost();
    }
    if (cancel != nullptr && cancel->is_set()) {
      take_away();
      cancel->check();
    }
    if (Clock::now() > end) {
      take_away();
      fail<DeadlineError>("[weights] ", name_, ": no answer within ", deadline_.count() / 1000,
                          " s; is it overloaded, or its disk stuck?");
    }
    changed_.wait_for(lock, kPollCancel);
  }
}

std::optional<wire::Manifest> LinkSource::manifest(const wire::ManifestRequest& request,
                                                   const CancelFlag* cancel) {
  Answer answer = ask(request, cancel);
  if (answer.error) return std::nullopt;
  if (!answer.manifest) {
    fail<ProtocolError>("[weights] ", name_, ": answered a manifest request with weights");
  }
  return std::move(answer.manifest);
}

std::vector<std::uint8_t> LinkSource::fetch(const wire::BlobRequest& request,
                                            const CancelFlag* cancel) {
  Answer answer = ask(request, cancel);
  if (answer.manifest) {
    fail<ProtocolError>("[weights] ", name_, ": answered a blob request with a manifest");
  }
  return std::move(answer.blob);
}

bool LinkSource::take(net::Incoming& incoming) {
  auto* manifest = std::get_if<wire::Manifest>(&incoming.message);
  const auto* blob = std::get_if<wire::Blob>(&incoming.message);
  auto* error = std::get_if<wire::ErrorReply>(&incoming.message);
  std::uint64_t id = 0;
  if (manifest != nullptr) id = manifest->request;
  if (blob != nullptr) id = blob->request;
  if (error != nullptr) id = error->request;
  if ((id & kSourceRequest) == 0) return false;
  const std::lock_guard lock(mutex_);
  const auto found = waiting_.find(id);
  if (found == waiting_.end() || found->second.here) return true;  // given up since
  Answer& answer = found->second;
  answer.here = true;
  if (manifest != nullptr) answer.manifest = std::move(*manifest);
  if (blob != nullptr) answer.blob.assign(incoming.payload.begin(), incoming.payload.end());
  if (error != nullptr) answer.error = std::move(*error);
  changed_.notify_all();
  return true;
}

void LinkSource::lost(std::exception_ptr why) {
  const std::lock_guard lock(mutex_);
  is_lost_ = true;
  why_ = std::move(why);
  changed_.notify_all();
}

PeerSource::PeerSource(net::NetThread& net, net::LinkOptions options, std::string address,
                       net::milliseconds deadline)
    : net_(net), options_(std::move(options)), address_(std::move(address)), deadline_(deadline) {}

PeerSource::~PeerSource() {
  if (link_) link_->close();
}

std::shared_ptr<LinkSource> PeerSource::source(const CancelFlag* cancel) {
  const std::lock_guard lock(mutex_);
  if (link_ && !link_->closed()) return source_;
  link_ = net::dial(net_, options_, address_, net::milliseconds(5000), cancel);
  source_ = std::make_shared<LinkSource>(link_, address_, deadline_);
  net::Connection::Handlers handlers;
  // Weakly: the source holds the link.
  handlers.on_message = [source = std::weak_ptr(source_)](net::Incoming&& incoming) {
    const auto there = source.lock();
    if (there && !there->take(incoming)) {
      fail<ProtocolError>("[weights] an unexpected ", wire::type_name(incoming.header.type));
    }
  };
  handlers.on_closed = [source = std::weak_ptr(source_)](std::exception_ptr why) {
    if (const auto there = source.lock()) there->lost(std::move(why));
  };
  link_->start(std::move(handlers));
  return source_;
}

std::optional<wire::Manifest> PeerSource::manifest(const wire::ManifestRequest& request,
                                                   const CancelFlag* cancel) {
  return source(cancel)->manifest(request, cancel);
}

std::vector<std::uint8_t> PeerSource::fetch(const wire::BlobRequest& request,
                                            const CancelFlag* cancel) {
  return source(cancel)->fetch(request, cancel);
}

}  // namespace moesaic::cluster
