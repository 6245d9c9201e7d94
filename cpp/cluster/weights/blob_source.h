// Weights asked for over links. LinkSource speaks over a link that somebody else owns and reads;
// PeerSource dials its own, when first asked, and again after it was lost. Not for answering:
// blob_server.h.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cluster/weights/weight_store.h"
#include "net/connection.h"

namespace moesaic::cluster {

// Requests of sources have this bit, so that an ErrorReply to one is told from those to other
// requests on the same link.
inline constexpr std::uint64_t kSourceRequest = std::uint64_t{1} << 63;

class LinkSource final : public BlobSource {
 public:
  // The link is started and read by its owner, who hands in what comes and when it is lost.
  // deadline: without an answer.
  LinkSource(std::shared_ptr<net::Connection> link, std::string name,
             net::milliseconds deadline = net::milliseconds(10000));

  std::string name() const override { return name_; }
  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request,
                                         const CancelFlag* cancel) override;
  std::vector<std::uint8_t> fetch(const wire::BlobRequest& request,
                                  const CancelFlag* cancel) override;

  // On the net thread. True: it was an answer to this source, which has taken it.
  bool take(net::Incoming& incoming);
  // Ends all waiting with this error, now and later; null: the link was closed on this side.
  void lost(std::exception_ptr why);

 private:
  struct Answer {
    bool here = false;
    std::optional<wire::Manifest> manifest;
    std::vector<std::uint8_t> blob;
    std::optional<wire::ErrorReply> error;
  };
  [[noreturn]] void throw_lost() const;  // with mutex_ held
  Answer wait(std::uint64_t id, const CancelFlag* cancel);
  template <typename M>
  Answer ask(M request, const CancelFlag* cancel);

  const std::shared_ptr<net::Connection> link_;
  const std::string name_;
  const net::milliseconds deadline_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t next_ = 0;
  std::map<std::uint64_t, Answer> waiting_;
  bool is_lost_ = false;
  std::exception_ptr why_;
};

class PeerSource final : public BlobSource {
 public:
  PeerSource(net::NetThread& net, net::LinkOptions options, std::string address,
             net::milliseconds deadline = net::milliseconds(10000));
  ~PeerSource() override;

  std::string name() const override { return address_; }
  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request,
                                         const CancelFlag* cancel) override;
  std::vector<std::uint8_t> fetch(const wire::BlobRequest& request,
                                  const CancelFlag* cancel) override;

 private:
  std::shared_ptr<LinkSource> source(const CancelFlag* cancel);

  net::NetThread& net_;
  const net::LinkOptions options_;
  const std::string address_;
  const net::milliseconds deadline_;
  std::mutex mutex_;  // held while dialling: others wait for that link
  std::shared_ptr<net::Connection> link_;
  std::shared_ptr<LinkSource> source_;
};

}  // namespace moesaic::cluster
