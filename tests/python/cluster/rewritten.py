"""The families' small models written anew with other keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import moesaic

FAMILIES = Path(__file__).parents[2] / "data" / "families"


def rewritten(source: str | Path, path: Path, keys: dict[str, Any]) -> Path:
    """Write a family's model, or any file, to a path; None leaves a key out."""
    if isinstance(source, str):
        source = FAMILIES / f"{source}.gguf"
    with moesaic.GGUF(source) as gguf:
        metadata = {k: v for k, v in {**gguf.metadata, **keys}.items() if v is not None}
        tensors = {n: (t.raw, t.qtype, t.shape) for n, t in gguf.tensors.items()}
        moesaic.write_gguf(path, metadata, tensors)
    return path
