"""Where a command takes the cluster's key from: a file, or the environment."""

from __future__ import annotations

import os
from pathlib import Path

from moesaic import _core

KEY_VARIABLE = "MOESAIC_KEY"


def key_from_environment() -> _core.ClusterKey | None:
    """Take the key out of ``$MOESAIC_KEY``: the text of a key file.

    The variable is gone afterwards, for child processes and in ``/proc/PID/environ`` too, so that
    nothing that may look at this process later finds the key there.

    Returns
    -------
    ClusterKey or None
        None when the variable is not set, or empty.

    Raises
    ------
    ArgumentError
        For a text that is not a key.
    """
    text = _core.take_environment(KEY_VARIABLE)
    os.environ.pop(KEY_VARIABLE, None)
    return None if text is None else _core.ClusterKey.parse(text)


def read_key(path: Path | None) -> _core.ClusterKey | None:
    """Return the key of a file; without one, the key in the environment, if there is one.

    Parameters
    ----------
    path : Path or None
        A key file of mode 0600 (``moesaic keygen``). It wins over the environment.

    Raises
    ------
    IoError
        When the file cannot be read, or others may read it.
    ArgumentError
        For a text that is not a key.
    """
    from_environment = key_from_environment()  # taken in any case: it must not stay there
    if path is None:
        return from_environment
    return _core.ClusterKey.read(os.fsencode(path))
