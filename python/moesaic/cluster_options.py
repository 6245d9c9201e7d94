"""Checks of what callers of a cluster give: folders, choices, layers. Not for what it does."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import ArgumentError, IoError
from moesaic.folders import cache_folder, make_private
from moesaic.inputs import integer

if TYPE_CHECKING:
    from moesaic.plan import Plan

__all__ = ["check_local", "layer_ends", "one_of", "planned_ends", "usable_cache", "workers"]

_MOST_WORKERS = 1024
_MOST_THREADS = 1024


def workers(n: int) -> str:
    return f"{n} worker" if n == 1 else f"{n} workers"


def layer_ends(layers: Sequence[int], n_workers: int, where: str) -> list[int]:
    if isinstance(layers, str | bytes) or len(layers) != n_workers:
        raise ArgumentError(
            f"[{where}] layers: got {layers!r}, need one count for each of {workers(n_workers)}"
        )
    return list(accumulate(integer(count, "layers", where, 0, 2**31) for count in layers))


def planned_ends(plan: Plan, addresses: tuple[str, ...], where: str) -> list[int]:
    planned = tuple(node.address for node in plan.nodes)
    if planned != addresses:
        raise ArgumentError(
            f"[{where}] plan: it is for {', '.join(planned)}, need one for this cluster's "
            f"workers in their order: {', '.join(addresses)}"
        )
    return [node.layers.stop for node in plan.nodes]


def check_local(n: Any, *, threads: Any, models: Any, cache: Any, memory: Any) -> None:
    where = "Cluster.local"
    integer(n, "n", where, 1, _MOST_WORKERS)
    integer(threads, "threads", where, 1, _MOST_THREADS)
    if memory is not None:
        integer(memory, "memory", where, 1, 2**62)
    _check_folder(models, "models", where)
    _check_folder(cache, "cache", where)


def usable_cache() -> Path | None:
    """Return the user's cache folder, or None where there cannot be one."""
    try:
        return make_private(cache_folder())
    except IoError as error:  # digests are made again each time: slower, no less right
        logging.getLogger("moesaic").warning("no cache is used: %s", error)
        return None


def _check_folder(folder: Any, name: str, where: str) -> None:
    if folder is None:
        return
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError(f"[{where}] {name}: got {type(folder).__name__}, need a folder or None")
    if name == "models" and not Path(folder).is_dir():
        raise ArgumentError(f"[{where}] {name}: {os.fspath(folder)} is not a folder")


def one_of(value: Any, name: str, known: Sequence[str], where: str) -> None:
    if not isinstance(value, str) or value not in known:
        choices = ", ".join(f'"{k}"' for k in known)
        raise ArgumentError(f"[{where}] {name}: got {value!r}, need one of {choices}")
