"""Moesaic: run mixture-of-experts models from GGUF files, and see inside them with NumPy.

Start with :class:`Model`::

    import moesaic
    m = moesaic.Model.demo()          # or moesaic.Model("model.gguf")
    print(m.generate("In the beginning").text)
"""

from moesaic._version import __version__
from moesaic.errors import (
    ArgumentError,
    BackendError,
    ClosedError,
    DeadlineError,
    FormatError,
    InternalError,
    IoError,
    MoesaicError,
    NetError,
    OutOfMemoryError,
    ProtocolError,
    WorkerLost,
)
from moesaic.gguf import GGUF, Tensor, dequantize, quantize, write_gguf
from moesaic.model import Chunk, Generation, Model, Session
from moesaic.tokenizer import Tokenizer

__all__ = [
    "GGUF",
    "ArgumentError",
    "BackendError",
    "Chunk",
    "ClosedError",
    "DeadlineError",
    "FormatError",
    "Generation",
    "InternalError",
    "IoError",
    "Model",
    "MoesaicError",
    "NetError",
    "OutOfMemoryError",
    "ProtocolError",
    "Session",
    "Tensor",
    "Tokenizer",
    "WorkerLost",
    "__version__",
    "dequantize",
    "quantize",
    "write_gguf",
]
