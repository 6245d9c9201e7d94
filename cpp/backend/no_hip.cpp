// Stands in for hip/ in builds without the HIP runtime: the name is known, the backend is not here.
#include "backend/registry.h"

namespace moesaic::backend {

const bool kHasHip = false;

std::unique_ptr<Backend> make_hip_backend(const BackendOptions&) { return nullptr; }

}  // namespace moesaic::backend
