// From exceptions to values and back.
#include "net/failure.h"

#include "base/errors.h"
#include "wire/frame.h"

namespace moesaic::net {

Failure::Failure(const std::exception_ptr& error) {
  if (!error) return;
  const auto keep = [this](Kind kind, const std::exception& e) {
    kind_ = kind;
    text_ = e.what();
  };
  try {
    std::rethrow_exception(error);
  } catch (const wire::VersionError& e) {
    keep(Kind::kVersion, e);
  } catch (const ProtocolError& e) {
    keep(Kind::kProtocol, e);
  } catch (const DeadlineError& e) {
    keep(Kind::kDeadline, e);
  } catch (const ArgumentError& e) {
    keep(Kind::kArgument, e);
  } catch (const InternalError& e) {
    keep(Kind::kInternal, e);
  } catch (const std::exception& e) {
    keep(Kind::kNet, e);
  } catch (...) {
    kind_ = Kind::kInternal;
    text_ = "[net] unknown error";
  }
}

void Failure::raise() const {
  switch (kind_) {
    case Kind::kVersion:
      throw wire::VersionError(text_);
    case Kind::kProtocol:
      throw ProtocolError(text_);
    case Kind::kDeadline:
      throw DeadlineError(text_);
    case Kind::kArgument:
      throw ArgumentError(text_);
    case Kind::kInternal:
      throw InternalError(text_);
    case Kind::kNet:
    case Kind::kNone:
      break;
  }
  throw NetError(text_);
}

}  // namespace moesaic::net
