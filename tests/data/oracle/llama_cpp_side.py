"""Runs a GGUF in llama.cpp through the ctypes layer of llama-cpp-python: the second opinion.

F32 KV cache, no flash attention, one batch. Needs LLAMA_CPP_LIB_PATH (folder of libllama).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

try:
    import llama_cpp.llama_cpp as lib
except FileNotFoundError as error:
    raise SystemExit("set LLAMA_CPP_LIB_PATH to a folder that has libllama.so") from error

from oracle.weights import F32

_GGML_F32 = 0
_ready = False


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(level: int, text: bytes, data: Any) -> None:
    del data
    if level == 4:  # GGML_LOG_LEVEL_ERROR (5 continues a line of any level)
        print("llama.cpp:", text.decode(errors="replace").rstrip())


def _start() -> None:
    global _ready
    if not _ready:
        lib.llama_log_set(_quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        _ready = True


class LlamaCpp:
    """One open model with one sequence.

    Parameters
    ----------
    path : Path
    n_ctx : int
    f32_cache : bool
        F32 KV cache and no flash attention; False is llama.cpp's default (F16, automatic).
    threads : int
    """

    def __init__(self, path: Path, *, n_ctx: int, f32_cache: bool = True, threads: int = 1) -> None:
        _start()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = lib.llama_load_model_from_file(str(path).encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp refused {path.name}")
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = n_ctx
        settings.n_threads = settings.n_threads_batch = threads
        if f32_cache:
            settings.type_k = settings.type_v = _GGML_F32
            settings.flash_attn_type = 0
        self.context = lib.llama_new_context_with_model(self.model, settings)
        if not self.context:
            raise RuntimeError(f"llama.cpp made no context for {path.name}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.n_ctx = n_ctx
        self.filled = 0

    def clear(self) -> None:
        """Forget the sequence."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.filled = 0

    def forward(self, tokens: list[int]) -> F32:
        """Append tokens; logits of each of them, float32 (n, vocab)."""
        n = len(tokens)
        batch = lib.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.filled + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        code = lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        self.filled += n
        rows = lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, shape=(n, self.n_vocab)).copy()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        data = text.encode()
        room = (lib.llama_token * (len(data) + 8))()
        n = lib.llama_tokenize(
            self.vocab, data, len(data), room, len(room), add_special, parse_special
        )
        if n < 0:
            raise RuntimeError("llama_tokenize wants more room than one token per byte")
        return list(room[:n])

    def detokenize(self, tokens: list[int]) -> str:
        """Text of token ids, special ones spelled out."""
        ids = (lib.llama_token * len(tokens))(*tokens)
        room = ctypes.create_string_buffer(64 * len(tokens) + 64)
        n = lib.llama_detokenize(self.vocab, ids, len(tokens), room, len(room), False, True)
        return room.raw[:n].decode()

    def greedy(self, tokens: list[int], n: int) -> tuple[list[int], list[float]]:
        """Greedy continuation of n tokens, and per token the gap to the second-best logit."""
        self.clear()
        row = self.forward(tokens)[-1]
        out: list[int] = []
        margins: list[float] = []
        for _ in range(n):
            second, first = np.sort(row)[-2:]
            margins.append(float(first - second))
            out.append(int(row.argmax()))
            row = self.forward(out[-1:])[-1]
        return out, margins

    def close(self) -> None:
        """Free the context and the model."""
        lib.llama_free(self.context)
        lib.llama_free_model(self.model)


def quantize(source: Path, target: Path, *, ftype: int, pure: bool = False) -> None:
    """Write `source` with its matrices in another element type.

    Parameters
    ----------
    source, target : Path
    ftype : int
        llama.cpp's LLAMA_FTYPE number (0 = F32).
    pure : bool
        The same element type for every matrix.
    """
    _start()
    options = lib.llama_model_quantize_default_params()
    options.ftype = ftype
    options.nthread = 1
    options.allow_requantize = True
    options.pure = pure
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code} for {target.name}")
