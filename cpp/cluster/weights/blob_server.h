// Answers manifest and blob requests of links from a weight store, on a thread of its own: disks
// are slow, and the net thread must never wait. A link's requests are answered in order; links take
// turns, and one that does not take its bytes waits without holding up the others.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "cluster/weights/weight_store.h"
#include "net/connection.h"

namespace moesaic::cluster {

class BlobServer {
 public:
  // The store outlives the server.
  explicit BlobServer(WeightStore& store);
  ~BlobServer();
  BlobServer(const BlobServer&) = delete;
  BlobServer& operator=(const BlobServer&) = delete;

  // On the net thread. True: it was a request, which is queued (or refused with an ErrorReply, when
  // too many of this link are waiting). The link's end needs no word: answers to it are dropped.
  bool take(const std::shared_ptr<net::Connection>& link, const net::Incoming& incoming);

 private:
  using Request = std::variant<wire::ManifestRequest, wire::BlobRequest>;
  struct Client {
    std::weak_ptr<net::Connection> link;
    std::deque<Request> requests;
  };
  struct Job {
    std::shared_ptr<net::Connection> link;
    Request request;
  };

  void work();
  // The next request of a link that has room, links in turn; nothing: at once none has.
  std::optional<Job> next();
  void answer(const Job& job);

  WeightStore& store_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Client> clients_;  // with requests; the next one's turn is the first's
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace moesaic::cluster
