"""What a model is, weights included, as a digest that is made when it is first asked for."""

from __future__ import annotations

import os
import threading
from typing import Any

from moesaic import _core
from moesaic.cluster_options import usable_cache


class Fingerprint:
    """The digest of a model's headers and weights; calling it gives 64 hex digits.

    The first call of a file reads all of it, with all cores and interruptibly; the digests are
    remembered in the user's cache folder, so that later ones take milliseconds.
    """

    def __init__(self, file: _core.GGUFFile | None = None, known: str = "") -> None:
        self._file = file
        self._known = known
        self._lock = threading.Lock()

    def __call__(self) -> str:
        """Return it."""
        with self._lock:
            if not self._known:
                assert self._file is not None
                folder = usable_cache()
                self._known = _core.fingerprint(self._file, os.fsencode(folder) if folder else b"")
                self._file = None
            return self._known

    def __reduce__(self) -> tuple[Any, ...]:
        return (Fingerprint, (None, self()))
