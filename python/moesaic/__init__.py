"""Moesaic: run mixture-of-experts models from GGUF files, and see inside them with NumPy.

Start with :class:`Model`::

    import moesaic
    m = moesaic.Model.demo()          # or moesaic.Model("model.gguf")
    print(m.generate("In the beginning").text)

Names are imported when first used: a worker of a cluster needs neither NumPy nor a tokenizer, and
starts at once.
"""

from __future__ import annotations

from moesaic import _starting as _starting  # first: Ctrl-C during the other imports is its matter

# isort: split
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
    from moesaic.capture import Captures
    from moesaic.cluster import Cluster
    from moesaic.config import Config, Layer
    from moesaic.generation import GenerateOptions
    from moesaic.gguf import GGUF, Tensor, dequantize, quantize, write_gguf
    from moesaic.model import Chunk, Generation, Model, Session, Timings
    from moesaic.nodes import Node
    from moesaic.plan import Plan, PlanNode, Prediction
    from moesaic.tokenizer import Tokenizer

__all__ = [
    "GGUF",
    "ArgumentError",
    "BackendError",
    "Captures",
    "Chunk",
    "ClosedError",
    "Cluster",
    "Config",
    "DeadlineError",
    "FormatError",
    "GenerateOptions",
    "Generation",
    "InternalError",
    "IoError",
    "Layer",
    "Model",
    "MoesaicError",
    "NetError",
    "Node",
    "OutOfMemoryError",
    "Plan",
    "PlanNode",
    "Prediction",
    "ProtocolError",
    "QueueFullError",
    "Session",
    "Tensor",
    "Timings",
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
    "Captures": "capture",
    "Chunk": "model",
    "Cluster": "cluster",
    "Config": "config",
    "GenerateOptions": "generation",
    "Generation": "model",
    "Layer": "config",
    "Model": "model",
    "Node": "nodes",
    "Plan": "plan",
    "PlanNode": "plan",
    "Prediction": "plan",
    "Session": "model",
    "Timings": "model",
    "Tokenizer": "tokenizer",
}


if not TYPE_CHECKING:  # or a type checker would take any misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'moesaic' has no attribute {name!r}")
        value = getattr(import_module(f"moesaic.{_HOMES[name]}"), name)
        globals()[name] = value  # found without this function from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
