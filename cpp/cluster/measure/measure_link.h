// What a link between two nodes reaches, measured by one of them: the other answers each blob with
// an empty one.
#pragma once

#include <string>

#include "base/cancel.h"
#include "net/connection.h"

namespace moesaic::cluster {

struct LinkRates {
  double rtt_s = 0;        // the best of some small frames there and back
  double bytes_per_s = 0;  // one way, of up to 16 MiB
};

// Dials `address` as an observer. Throws NetError, DeadlineError, CancelledError. Not on the net
// thread.
LinkRates measure_link(net::NetThread& net, net::LinkOptions options, const std::string& address,
                       const CancelFlag* cancel = nullptr);

}  // namespace moesaic::cluster
