// What this machine reaches, remembered between processes, so that a worker that starts again need
// not measure itself and makes the plan that it made before. One small file in the cache's folder
// for each combination of what the rates depend on: release, instruction set, processor, threads.
// Removing it is how one has it measured again. Not for links: those change more than processors
// do, and are measured in milliseconds.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "cluster/measure/measure.h"
#include "cluster/weights/file_ops.h"

namespace moesaic::cluster {

struct RateKey {
  std::string release;
  std::string isa;
  std::string processor;  // what it calls itself
  int threads = 1;
};

class RateBook {
 public:
  using Log = std::function<void(const std::string& event, const std::string& text)>;
  // folder empty: nothing is remembered.
  RateBook(std::string folder, RateKey key, FileOps& ops, Log log);
  // Nothing: not known, or what is there is damaged or of another machine; then it is measured.
  std::optional<Rates> find() const;
  // A failing disk costs the next start another measurement: logged.
  void add(const Rates& rates) const;
  std::string path() const;  // empty: nothing is remembered

 private:
  std::string text() const;

  std::string folder_;
  RateKey key_;
  FileOps& ops_;
  Log log_;
};

// "AMD Ryzen AI MAX+ 395 w/ Radeon 8060S"; numbers where the kernel gives no name; may be empty.
std::string processor_model();

}  // namespace moesaic::cluster
