"""What outlives a Cluster object, or must not keep it alive: its end, and its launcher's news."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moesaic import _core
from moesaic.launcher import LocalLauncher
from moesaic.voice import Voice

if TYPE_CHECKING:
    from moesaic.cluster import Cluster

__all__ = ["Adder", "end"]


def end(core: _core.Coordinator, launcher: LocalLauncher | None, voice: Voice, pid: int) -> None:
    if os.getpid() != pid:  # a forked child: the links are its parent's
        return
    try:
        core.close()
    finally:
        if launcher is not None:
            launcher.close()
        voice.close()


class Adder:
    """Adds what a launcher starts to its cluster, for as long as there is one."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = weakref.ref(cluster)

    def __call__(self, addresses: Sequence[str]) -> None:
        cluster = self._cluster()
        if cluster is None or cluster.closed:
            return
        for address in addresses:
            cluster.add(address)
