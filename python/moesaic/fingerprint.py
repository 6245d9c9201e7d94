"""What a model is, weights included, as a digest that is made when it is first asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from moesaic import _core
from moesaic.cluster_options import usable_cache
from moesaic.overrides import Override


class Fingerprint:
    """The digest of a model's headers, weights and overrides; calling it gives 64 hex digits.

    The first call of a file reads all of it, with all cores and interruptibly; the digests are
    remembered in the user's cache folder, so that later ones take milliseconds.
    """

    def __init__(
        self,
        file: _core.GGUFFile | None = None,
        known: str = "",
        overrides: Mapping[str, Override] | None = None,
    ) -> None:
        self._file = file
        self._known = known
        self._overrides = dict(overrides or {})
        self._lock = threading.Lock()

    def __call__(self) -> str:
        """Return it."""
        with self._lock:
            if not self._known:
                assert self._file is not None
                folder = usable_cache()
                cache = os.fsencode(folder) if folder else b""
                self._known = _core.fingerprint(self._file, cache, self._overrides)
                self._file = None
            return self._known

    def __reduce__(self) -> tuple[Any, ...]:
        return (Fingerprint, (None, self()))
