// See amounts.h.
#include "cluster/weights/amounts.h"

#include <cstdio>

#include "base/errors.h"

namespace moesaic::cluster {

std::string human_bytes(double n_bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB"};
  char text[64];
  for (const char* unit : kUnits) {
    if (n_bytes < 1000) {
      std::snprintf(text, sizeof text, unit == kUnits[0] ? "%.0f %s" : "%.1f %s", n_bytes, unit);
      return text;
    }
    n_bytes /= 1000;
  }
  std::snprintf(text, sizeof text, "%.2f TB", n_bytes);
  return text;
}

std::string counted(std::int64_t n, const char* one) {
  return strcat(n, " ", one, n == 1 ? "" : "s");
}

}  // namespace moesaic::cluster
