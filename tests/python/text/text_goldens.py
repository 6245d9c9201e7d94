"""Reduced vocabularies of real models, as the GGUF metadata they came from."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "data" / "tokenizer"
VOCABULARIES = sorted(
    p.name.removesuffix(".json.gz") for p in DATA.glob("*.json.gz") if p.name != "splits.json.gz"
)


@cache
def load(name: str) -> dict[str, Any]:
    """The content of one golden file."""
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))  # type: ignore[no-any-return]


def expand(golden: dict[str, Any]) -> dict[str, Any]:
    """Metadata of the full size: tokens that were left out become unused ones that nothing can
    spell."""
    size = golden["size"]
    tokens = [f"[left out {i}]" for i in range(size)]
    types = [5] * size
    scores = [-1e30] * size
    for k, i in enumerate(golden["ids"]):
        tokens[i] = golden["tokens"][k]
        types[i] = golden["types"][k]
        if golden["scores"] is not None:
            scores[i] = golden["scores"][k]
    metadata = dict(golden["keys"])
    metadata["tokenizer.ggml.tokens"] = tokens
    metadata["tokenizer.ggml.token_type"] = types
    if golden["scores"] is not None:
        metadata["tokenizer.ggml.scores"] = scores
    if golden["merges"] is not None:
        metadata["tokenizer.ggml.merges"] = golden["merges"]
    return metadata
