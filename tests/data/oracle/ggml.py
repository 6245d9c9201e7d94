"""ggml's own quantizers and decoders by ctypes: a tool for making blocks, and a second opinion."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class Ggml:
    """The quantizers and decoders of libggml-base, for any type."""

    class _Traits(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("block", ctypes.c_int64),
            ("interleave", ctypes.c_int64),
            ("size", ctypes.c_size_t),
            ("quantized", ctypes.c_bool),
            ("to_float", ctypes.c_void_p),
            ("from_float", ctypes.c_void_p),
        )

    def __init__(self) -> None:
        folder = os.environ.get("LLAMA_CPP_LIB_PATH")
        if folder is None:
            raise SystemExit("set LLAMA_CPP_LIB_PATH to a folder that has libggml-base.so")
        self.lib = ctypes.CDLL(str(Path(folder) / "libggml-base.so"))
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(self._Traits)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]

    def encode(self, x: F32, kind: gguf.GGMLQuantizationType) -> U8:
        """Quantize one row x (n,) with equal importance everywhere; (blocks, block bytes)."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros((x.size // block, size), np.uint8)
        weight = np.ones(x.size, np.float32)
        self.lib.ggml_quantize_chunk(
            int(kind), x.ctypes.data, out.ctypes.data, 0, 1, x.size, weight.ctypes.data
        )
        return out

    def encode_rows(self, x: F32, kind: gguf.GGMLQuantizationType) -> U8:
        """Quantize x (..., n) row by row; uint8 (..., bytes per row)."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        n = x.shape[-1]
        x = np.ascontiguousarray(x, np.float32)
        out = np.zeros((*x.shape[:-1], n // block * size), np.uint8)
        weight = np.ones(n, np.float32)
        self.lib.ggml_quantize_chunk(
            int(kind), x.ctypes.data, out.ctypes.data, 0, x.size // n, n, weight.ctypes.data
        )
        return out

    def decode(self, raw: U8, kind: gguf.GGMLQuantizationType) -> F32:
        """Decode blocks with ggml's own routine."""
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros((raw.shape[0], block), np.float32)
        traits = self.lib.ggml_get_type_traits(int(kind)).contents
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        call(traits.to_float)(raw.ctypes.data, out.ctypes.data, out.size)
        return out
