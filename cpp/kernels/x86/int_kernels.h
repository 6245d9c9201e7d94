// One row of a table per integer type, from the skeletons and the unpacking of the types. Each of
// the files that include this compiles a share of them, for the sake of build time.
#pragma once

#include "kernels/x86/small_few.h"
#include "kernels/x86/small_many.h"
#include "kernels/x86/super_few.h"
#include "kernels/x86/super_iq_types.h"
#include "kernels/x86/super_many.h"

namespace moesaic::kernels {

template <class X, class T>
void add_super_type(Table& table, const char* name) {
  table.matmul[static_cast<std::uint32_t>(T::kQtype)] = {
      ActFormat::kQ8x256, name, super_few<X, T>, super_many<X, T>,
      T::kManyFrom > 0 ? T::kManyFrom : X::kManyFrom};
}

template <class X, class T>
void add_small_type(Table& table, const char* name) {
  table.matmul[static_cast<std::uint32_t>(T::kQtype)] = {ActFormat::kQ8x32, name, small_few<X, T>,
                                                         small_many<X, T>, X::kManyFrom};
}

}  // namespace moesaic::kernels
