// How make_backend reaches each backend: one function per backend, defined in <name>/ or, where a
// build leaves it out, in no_<name>.cpp. An explicit list (registry.cpp), because self-registration
// is dropped from static libraries.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace moesaic::backend {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

// Null when the build has no HIP backend.
std::unique_ptr<Backend> make_hip_backend(const BackendOptions& options);
extern const bool kHasHip;

}  // namespace moesaic::backend
