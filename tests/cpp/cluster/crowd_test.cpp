// One source does not take all of a worker's places, neither for links nor for deployments.
#include <gtest/gtest.h>

#include "cluster/cluster_rig.h"
#include "net/rig.h"

namespace moesaic::cluster {
namespace {

using net::testing::eventually;
using net::testing::RawPeer;
using testing::ClusterRig;

// A peer that has said hello; what it is told then, or "" while it is welcome.
class Guest {
 public:
  Guest(const std::string& worker, const std::string& source) : peer_(worker, source) {
    EXPECT_TRUE(peer_.greet(net::random_node_id()));
  }
  std::string refusal() {
    const auto frame = peer_.receive_frame();  // a ping, or why it has to go
    const auto* reason = frame ? std::get_if<wire::GoAway>(&frame->message) : nullptr;
    if (reason == nullptr) return "";
    EXPECT_EQ(reason->reason, wire::Reason::kBusy);
    return reason->text;
  }

 private:
  RawPeer peer_;
};

TEST(CrowdedWorker, KeepsHalfOfItsLinksForOtherSources) {
  ClusterRig rig(model::testing::tiny_llama(),
                 {.n_workers = 1, .encrypted = false, .most_links = 8});
  const std::string worker = rig.workers()[0]->address();
  std::vector<std::unique_ptr<Guest>> crowd;  // beside the coordinator's link
  for (int i = 0; i < 3; ++i) crowd.push_back(std::make_unique<Guest>(worker, ""));
  EXPECT_EQ(crowd.back()->refusal(), "");
  const std::string text = Guest(worker, "").refusal();
  EXPECT_NE(text.find("4 links from its address"), std::string::npos) << text;
  Guest other(worker, "127.0.0.2");
  EXPECT_EQ(other.refusal(), "");
  EXPECT_EQ(rig.coordinator().nodes(false, nullptr).at(0).state, "idle");
}

TEST(CrowdedWorker, KeepsHalfOfItsDeploymentsForOtherSources) {
  ClusterRig rig(model::testing::tiny_llama(), {.n_workers = 1, .most_deployments = 4});
  const auto first = rig.deploy();
  auto second = rig.deploy();
  const std::string text = moesaic::testing::thrown<Error>([&] { rig.deploy(); });
  EXPECT_NE(text.find("2 deployments from its address"), std::string::npos) << text;
  EXPECT_NE(text.find("close other models"), std::string::npos) << text;
  second.reset();
  EXPECT_TRUE(eventually([&] {
    try {
      return rig.deploy() != nullptr;
    } catch (const Error&) {
      return false;
    }
  }));
}

}  // namespace
}  // namespace moesaic::cluster
