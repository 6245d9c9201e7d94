// An error as a value: class and text, from which each thread throws an exception of its own. (One
// exception object thrown in several threads at once is counted inside libstdc++, where
// ThreadSanitizer cannot see it.) Inside net only.
#pragma once

#include <exception>
#include <string>

namespace moesaic::net {

class Failure {
 public:
  Failure() = default;  // none
  explicit Failure(const std::exception_ptr& error);
  explicit operator bool() const { return kind_ != Kind::kNone; }
  // An exception of the same class for those that net throws itself; NetError for others.
  [[noreturn]] void raise() const;

 private:
  enum class Kind { kNone, kNet, kDeadline, kProtocol, kVersion, kArgument, kInternal };
  Kind kind_ = Kind::kNone;
  std::string text_;
};

}  // namespace moesaic::net
