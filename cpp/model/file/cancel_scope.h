// Lends a cancel flag to a backend for the time of one call.
#pragma once

#include "backend/backend.h"

namespace moesaic::model {

class CancelScope {
 public:
  CancelScope(backend::Backend& backend, const CancelFlag* flag) : backend_(backend) {
    backend_.set_cancel(flag);
  }
  ~CancelScope() { backend_.set_cancel(nullptr); }
  CancelScope(const CancelScope&) = delete;
  CancelScope& operator=(const CancelScope&) = delete;

 private:
  backend::Backend& backend_;
};

}  // namespace moesaic::model
