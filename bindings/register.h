// One function per bound group of classes; module.cpp calls them in this order (errors first: the
// others throw them).
#pragma once

#include <pybind11/pybind11.h>

namespace moesaic::bindings {

void register_errors(pybind11::module_& m);
void register_gguf(pybind11::module_& m);
void register_fingerprint(pybind11::module_& m);  // after what makes a GGUFFile
void register_engine(pybind11::module_& m);
void register_plan(pybind11::module_& m);
void register_worker(pybind11::module_& m);  // before what takes a ClusterKey
void register_cluster(pybind11::module_& m);
void register_system(pybind11::module_& m);

}  // namespace moesaic::bindings
