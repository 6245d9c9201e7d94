"""Options that several commands share, each said once, and opening a model from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from moesaic.model import Model

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A GGUF file, any part of a split set.", show_default=False
    ),
]
ContextLength = Annotated[int, typer.Option("--n-ctx", "-c", help="Longest sequence, in tokens.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", help="CPU threads.  [default: all the process may use]"),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bytes whatever the threads and batches.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option("--temperature", "--temp", help="0 is greedy.")]
TopK = Annotated[int, typer.Option("--top-k", help="0 is off.")]
TopP = Annotated[float, typer.Option("--top-p", help="1 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="0 is off.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Same seed, same tokens.  [default: random]")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def open_model(path: Path, *, n_ctx: int, threads: int | None, deterministic: bool) -> Model:
    """Open a model with a progress bar where there is a terminal to show it on."""
    return Model(str(path), n_ctx=n_ctx, threads=threads, deterministic=deterministic)


def jsonable(value: object) -> Any:
    """Plain JSON values of dataclasses, arrays, mappings and sequences."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    json.dump(jsonable(value), sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")


def human_bytes(n_bytes: float) -> str:
    """Bytes as a person would say them: ``1.6 GB`` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} TB"


def table(rows: list[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns padded to their widest cell; the columns in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
