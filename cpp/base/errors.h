// The one hierarchy of errors. C++ throws these; bindings/errors.cpp joins each to a Python class
// of the same name. A message says where, what, got, need, and what to do next: "[Model.forward]
// tokens: got float64 (3, 7), need ...". Not for control flow inside a step, and never for
// aborting: nothing in Moesaic aborts.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace moesaic {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class ArgumentError : public Error {  // the caller's value is wrong -> ValueError
 public:
  using Error::Error;
};
class FormatError : public Error {  // a file's or message's content is wrong -> ValueError
 public:
  using Error::Error;
};
class IoError : public Error {  // the operating system refused -> OSError
 public:
  using Error::Error;
};
class NetError : public Error {  // a peer cannot be reached; the peer is named -> ConnectionError
 public:
  using Error::Error;
};
class DeadlineError : public Error {  // a promised time has passed -> TimeoutError
 public:
  using Error::Error;
};
class ProtocolError : public Error {  // a peer said what it may not say -> ConnectionError
 public:
  using Error::Error;
};
class BackendError : public Error {  // a device failed -> RuntimeError
 public:
  using Error::Error;
};
class InternalError : public Error {  // our bug -> RuntimeError
 public:
  using Error::Error;
};
class CancelledError
    : public Error {  // the caller asked to stop; bindings turn it into what stopped it
 public:
  using Error::Error;
};
class ClosedError
    : public ArgumentError {  // used after close() -> ValueError, as Python's closed files
 public:
  using ArgumentError::ArgumentError;
};

class OutOfMemoryError : public Error {  // -> MemoryError
 public:
  OutOfMemoryError(const std::string& message, std::uint64_t needed, std::uint64_t free)
      : Error(message), needed_bytes(needed), free_bytes(free) {}
  std::uint64_t needed_bytes;
  std::uint64_t free_bytes;
};

class WorkerLost : public Error {  // -> ConnectionError
 public:
  WorkerLost(const std::string& message, std::string lost_node, std::vector<int> its_layers,
             std::vector<std::int32_t> tokens_so_far)
      : Error(message),
        node(std::move(lost_node)),
        layers(std::move(its_layers)),
        tokens(std::move(tokens_so_far)) {}
  std::string node;                  // "host:port"
  std::vector<int> layers;           // layers it held
  std::vector<std::int32_t> tokens;  // tokens generated so far
};

// strcat("a", 1, "b"): the pieces of a message, streamed. GCC 12 has no std::format.
template <typename... Parts>
std::string strcat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// fail<FormatError>("[gguf] ", path, ": ...") throws that error with the joined message.
template <typename E, typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw E(strcat(parts...));
}

}  // namespace moesaic
