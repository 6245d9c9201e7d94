// See blob_server.h.
#include "cluster/weights/blob_server.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/errors.h"
#include "base/thread_name.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kMaxRequests = 64;                        // of a link, waiting
constexpr std::size_t kMaxQueuedBytes = std::size_t{16} << 20;  // of answers a link has not taken
constexpr auto kFullPoll = 2ms;

std::uint64_t id_of(const std::variant<wire::ManifestRequest, wire::BlobRequest>& request) {
  return std::visit([](const auto& r) { return r.request; }, request);
}

void refuse(net::Connection& link, std::uint64_t request, wire::ErrorKind kind,
            const std::string& text) {
  wire::ErrorReply reply;
  reply.request = request;
  reply.kind = kind;
  reply.text = text;
  link.send(reply);
}

}  // namespace

BlobServer::BlobServer(WeightStore& store)
    : store_(store), thread_([this] {
        name_this_thread("moesaic-blobs");
        work();
      }) {}

BlobServer::~BlobServer() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

bool BlobServer::take(const std::shared_ptr<net::Connection>& link, const net::Incoming& incoming) {
  std::optional<Request> request;
  if (const auto* manifest = std::get_if<wire::ManifestRequest>(&incoming.message)) {
    request = *manifest;
  } else if (const auto* blob = std::get_if<wire::BlobRequest>(&incoming.message)) {
    request = *blob;
  } else {
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    auto client = std::find_if(clients_.begin(), clients_.end(),
                               [&](const Client& c) { return c.link.lock() == link; });
    if (client == clients_.end()) {
      clients_.push_back({link, {}});
      client = std::prev(clients_.end());
    }
    if (client->requests.size() < kMaxRequests) {
      client->requests.push_back(*std::move(request));
      changed_.notify_one();
      return true;
    }
  }
  refuse(*link, id_of(*request), wire::ErrorKind::kDeadline,
         strcat("[weights] ", kMaxRequests, " requests of this link are waiting already"));
  return true;
}

std::optional<BlobServer::Job> BlobServer::next() {
  for (std::size_t i = clients_.size(); i > 0; --i) {
    Client client = std::move(clients_.front());
    clients_.pop_front();
    const auto link = client.link.lock();
    if (!link || link->closed()) continue;  // its requests go with it
    if (link->queued_bytes() > kMaxQueuedBytes) {
      clients_.push_back(std::move(client));
      continue;
    }
    Job job{link, std::move(client.requests.front())};
    client.requests.pop_front();
    if (!client.requests.empty()) clients_.push_back(std::move(client));
    return job;
  }
  return std::nullopt;
}

void BlobServer::work() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    if (clients_.empty()) {
      changed_.wait(lock);
      continue;
    }
    std::optional<Job> job = next();
    if (!job) {
      if (!clients_.empty()) changed_.wait_for(lock, kFullPoll);
      continue;
    }
    lock.unlock();
    answer(*job);
    job.reset();  // perhaps the last handle of its link
    lock.lock();
  }
}

void BlobServer::answer(const Job& job) {
  const std::uint64_t id = id_of(job.request);
  try {
    try {
      if (const auto* request = std::get_if<wire::ManifestRequest>(&job.request)) {
        const auto manifest = store_.manifest(*request);
        if (manifest) {
          job.link->send(*manifest);
        } else {
          refuse(*job.link, id, wire::ErrorKind::kIo, "[weights] this model is not here");
        }
      } else {
        std::vector<std::uint8_t> bytes = store_.read(std::get<wire::BlobRequest>(job.request));
        wire::Blob blob;
        blob.request = id;
        job.link->send(blob, std::move(bytes));
      }
    } catch (const ArgumentError& error) {
      refuse(*job.link, id, wire::ErrorKind::kArgument, error.what());
    } catch (const IoError& error) {
      refuse(*job.link, id, wire::ErrorKind::kIo, error.what());
    } catch (const NetError&) {
      throw;
    } catch (const DeadlineError&) {
      throw;
    } catch (const std::exception& error) {
      refuse(*job.link, id, wire::ErrorKind::kInternal, error.what());
    }
  } catch (const std::exception&) {  // the link is gone, and with it who asked
  }
}

}  // namespace moesaic::cluster
