// Names the namespace and the vocabularies for the files of this folder: the code of avx512/ with
// VNNI.
#pragma once

#define MOESAIC_ISA_NAMESPACE avx512vnni
#define MOESAIC_ISA_NAME "avx512vnni"
#define MOESAIC_AVX512_NAMESPACE avx512vnni
#define MOESAIC_VNNI
// GCC 12's own intrinsics trip these (its bug 105593): they begin from an undefined register.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "kernels/avx512/ints.h"
#include "kernels/avx512/simd.h"
