"""The weights of a cluster's models: where a file is found, and which weights workers may free."""

from __future__ import annotations

import os
import time
from pathlib import Path

from moesaic import _core
from moesaic.errors import ArgumentError, IoError
from moesaic.gguf import GGUF
from moesaic.launcher import LocalLauncher
from moesaic.model import Model
from moesaic.model_names import located
from moesaic.nodes import Node, Nodes

__all__ = ["open_file", "unload"]

_FREED_S = 3.0


def open_file(
    core: _core.Coordinator,
    launcher: LocalLauncher | None,
    path: str | os.PathLike[str],
    where: str,
) -> GGUF:
    """Open a file that is here, or the headers of one that workers have."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentError(f"[{where}] path: got {path!r}, need str or os.PathLike")
    name = located(path, where, on_workers=True)
    if Path(name).exists():
        file = GGUF(name)
        if launcher is not None:
            launcher.offer(file.paths)
        return file
    if Path(name).name != name:
        raise IoError(
            f"[{where}] {name}: there is no such file here; a bare name "
            f'("{Path(name).name}") is looked for in the workers\' models folders'
        )
    return GGUF._from_core(core.remote_file(name), name)


def unload(
    core: _core.Coordinator, model: Model | str | os.PathLike[str] | None, where: str
) -> Nodes:
    """Close the model, if it is one, and let the workers free weights that are not in use."""
    patience_s = 0.0
    if isinstance(model, Model):
        name = Path(model.path).name
        model.close()
        patience_s = _FREED_S  # the workers free what it used a moment later
    elif model is None:
        name = ""
    elif isinstance(model, str | os.PathLike):
        name = Path(os.fspath(model)).name
    else:
        raise ArgumentError(
            f"[{where}] model: got {type(model).__name__}, need a Model, the name of a file, "
            "or None"
        )
    deadline = time.monotonic() + patience_s
    while True:
        nodes = Nodes(Node._from_core(info) for info in core.unload(name))
        held = any(not name or name in (m.name, m.identity) for n in nodes for m in n.models)
        if not held or time.monotonic() > deadline:
            return nodes
        time.sleep(0.05)
