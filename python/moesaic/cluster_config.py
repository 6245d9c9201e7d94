"""Clusters by name: ``clusters.toml`` in the user's config folder, and keys as callers give them.

A file of one table for each cluster; the key's path may be relative to the file's folder::

    [home]
    workers = ["10.0.0.11:9777", "10.0.0.12:9777"]
    key = "home.key"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic import _core
from moesaic.errors import ArgumentError, FormatError, IoError
from moesaic.folders import config_folder

__all__ = ["Key", "NamedCluster", "named_cluster", "named_clusters", "read_key", "resolve"]

#: What ``key=`` takes: a key file's path, the key itself as bytes, a launcher's key, or None.
Key = str | os.PathLike[str] | bytes | _core.ClusterKey | None

_FILE = "clusters.toml"
_FIELDS = {"workers", "key"}
_RAW_KEY_BYTES = 32


@dataclass(frozen=True)
class NamedCluster:
    """One table of the file."""

    name: str
    workers: tuple[str, ...]
    key: Path | None


def named_cluster(name: str) -> NamedCluster:
    """Look up a cluster by its name.

    Raises
    ------
    ArgumentError
        There is no such cluster; the message lists those there are.
    FormatError
        The file is no TOML, or says something unknown.
    IoError
        The file cannot be read.
    """
    path = config_folder() / _FILE
    clusters = named_clusters()
    if clusters is None:
        raise ArgumentError(
            f'[cluster] got "{name}", need "host:port", or {path} with\n'
            f'[{name}]\nworkers = ["host:port", ...]\nkey = "path"'
        )
    if name not in clusters:
        known = ", ".join(sorted(clusters)) or "none"
        raise ArgumentError(
            f'[cluster] {path}: got "{name}", need one of its clusters ({known}), or "host:port"'
        )
    return clusters[name]


def named_clusters() -> dict[str, NamedCluster] | None:
    """Return every cluster that the user has given a name, or None without a file of them."""
    path = config_folder() / _FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise FormatError(f"[cluster] {path}: got a byte that is no UTF-8 ({error})") from None
    except OSError as error:
        raise IoError(f"[cluster] {path}: {error.strerror}") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"[cluster] {path}: no TOML: {error}") from None
    return {name: _table(name, table, path) for name, table in tables.items()}


def _table(name: str, table: Any, path: Path) -> NamedCluster:
    where = f"[cluster] {path}: [{name}]"
    if not isinstance(table, dict):
        raise FormatError(f"{where}: got {type(table).__name__}, need a table with workers and key")
    unknown = sorted(set(table) - _FIELDS)
    if unknown:
        raise FormatError(f'{where}: got "{unknown[0]}", need only workers and key')
    workers = table.get("workers")
    if not isinstance(workers, list) or not all(isinstance(w, str) for w in workers) or not workers:
        raise FormatError(f'{where} workers: got {workers!r}, need a list of "host:port"')
    key = table.get("key")
    if key is not None and not isinstance(key, str):
        raise FormatError(f"{where} key: got {key!r}, need the path of a key file")
    return NamedCluster(
        name=name,
        workers=tuple(workers),
        key=None if key is None else path.parent / Path(key).expanduser(),
    )


def resolve(workers: str | Sequence[str], key: Key, where: str) -> tuple[list[str], Key]:
    """Return addresses and key of what a caller named.

    Parameters
    ----------
    workers : str or sequence of str
        ``"host:port"``, several of them (a list, or one string with commas), or a cluster's name.
    key : str, os.PathLike, bytes or None
        Goes before the named cluster's.
    where : str
        For errors: who asks.
    """
    if isinstance(workers, str):
        if ":" not in workers and "," not in workers:
            named = named_cluster(workers)
            return list(named.workers), named.key if key is None else key
        workers = [part.strip() for part in workers.split(",")]
    if (
        isinstance(workers, bytes)
        or not isinstance(workers, Sequence)
        or not all(isinstance(worker, str) for worker in workers)
    ):
        raise ArgumentError(
            f'[{where}] workers: got {workers!r}, need a list of "host:port", or a name from '
            f"{config_folder() / _FILE}"
        )
    addresses = list(workers)
    if not addresses or not all(addresses):
        raise ArgumentError(f'[{where}] workers: got {addresses}, need at least one "host:port"')
    twice = [a for i, a in enumerate(addresses) if a in addresses[:i]]
    if twice:
        raise ArgumentError(f"[{where}] workers: got {twice[0]} twice, need each once")
    return addresses, key


def read_key(key: Key, where: str) -> _core.ClusterKey | None:
    """Return the core's key.

    Raises
    ------
    ArgumentError
        Neither 32 bytes nor the text of a key file.
    IoError
        The file cannot be read, or others may read it too.
    """
    if key is None or isinstance(key, _core.ClusterKey):
        return key
    if isinstance(key, bytes):
        text = key.hex().encode() if len(key) == _RAW_KEY_BYTES else key
        return _core.ClusterKey.parse(text)
    try:
        path = os.fsencode(key)
    except TypeError:
        raise ArgumentError(
            f"[{where}] key: got {type(key).__name__}, need the path of a key file, its bytes, or "
            "None"
        ) from None
    return _core.ClusterKey.read(path)
