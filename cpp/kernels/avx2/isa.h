// Names the namespace and the vocabularies for the files of this folder.
#pragma once

#define MOESAIC_ISA_NAMESPACE avx2
#define MOESAIC_ISA_NAME "avx2"

#include "kernels/avx2/ints.h"
#include "kernels/avx2/simd.h"
