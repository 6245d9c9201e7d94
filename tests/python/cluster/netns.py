"""A room of machines on one: network namespaces on a switch, each with an address of its own.

Needs root and iproute2 (CAP_NET_ADMIN); ``available()`` says whether they are there. What a test
does to a link (rates, cuts) ends with the room.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

_numbers = count()


def available() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"moesaic-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


class Room:
    """Namespaces by address: ``Room(["10.0.0.11", "10.0.0.12"])``; close() removes them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._tag = f"moesaic-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._tag}-switch"
        self._names = {address: f"{self._tag}-{i}" for i, address in enumerate(addresses)}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for i, (address, name) in enumerate(self._names.items()):
            _ip("netns", "add", name)
            port = f"p{i}"
            _ip("-n", self._switch, "link", "add", port, "type", "veth",
                "peer", "name", "eth0", "netns", name)  # fmt: skip
            _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def on(self, address: str, *command: str) -> list[str]:
        """Return the command line that runs a command on a machine."""
        return ["ip", "netns", "exec", self._names[address], *command]

    def limit(self, address: str, rate: str) -> None:
        """Limit what a machine sends, ``"1gbit"``, by a token bucket of 1 ms at that rate."""
        subprocess.run(
            self.on(address, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate,
                    "burst", "256kb", "latency", "50ms"),
            check=True, capture_output=True,
        )  # fmt: skip

    def plug(self, address: str, *, up: bool) -> None:
        """Pull a machine's cable, or put it back."""
        port = f"p{list(self._names).index(address)}"
        _ip("-n", self._switch, "link", "set", port, "up" if up else "down")

    def close(self) -> None:
        """Remove the namespaces; processes in them lose their network."""
        for name in (*self._names.values(), self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextmanager
def room(addresses: Sequence[str]) -> Iterator[Room]:
    """Make a room for a block."""
    made = Room(addresses)
    try:
        yield made
    finally:
        made.close()
