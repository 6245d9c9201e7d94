"""Moesaic: run mixture-of-experts models from GGUF files, and see inside them with NumPy.

Start with :class:`Model`::

    import moesaic
    m = moesaic.Model.demo()          # or moesaic.Model("model.gguf")
    print(m.generate("In the beginning").text)

Names are imported when first used: a worker of a cluster needs neither NumPy nor a tokenizer, and
starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    QueueFullError,
    WorkerLost,
)

if TYPE_CHECKING:
    from moesaic.cluster import Cluster
    from moesaic.gguf import GGUF, Tensor, dequantize, quantize, write_gguf
    from moesaic.model import Chunk, Generation, Model, Session
    from moesaic.nodes import Node
    from moesaic.plan import Plan
    from moesaic.tokenizer import Tokenizer

__all__ = [
    "GGUF",
    "ArgumentError",
    "BackendError",
    "Chunk",
    "ClosedError",
    "Cluster",
    "DeadlineError",
    "FormatError",
    "Generation",
    "InternalError",
    "IoError",
    "Model",
    "MoesaicError",
    "NetError",
    "Node",
    "OutOfMemoryError",
    "Plan",
    "ProtocolError",
    "QueueFullError",
    "Session",
    "Tensor",
    "Tokenizer",
    "WorkerLost",
    "__version__",
    "dequantize",
    "quantize",
    "write_gguf",
]

#: Where the names live that are imported when first used.
_HOMES = {
    "GGUF": "gguf",
    "Tensor": "gguf",
    "dequantize": "gguf",
    "quantize": "gguf",
    "write_gguf": "gguf",
    "Chunk": "model",
    "Cluster": "cluster",
    "Generation": "model",
    "Model": "model",
    "Node": "nodes",
    "Plan": "plan",
    "Session": "model",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moesaic' has no attribute {name!r}")
    value = getattr(import_module(f"moesaic.{_HOMES[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
