"""A TCP proxy that does to a link what bad networks do, for tests.

It stands before one worker: delays, limits the rate, cuts, keeps silent one way, flips a bit. Bytes
go through a thread of its own; settings may be changed from any thread at any time. It holds at
most ``_CHUNKS`` pieces of 64 KiB a direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable

TO_WORKER = "to worker"
FROM_WORKER = "from worker"
_CHUNK = 64 << 10
_CHUNKS = 32


class FaultProxy:
    """Forwards connections to ``to`` (``"host:port"``) and harms them as its attributes say.

    Attributes
    ----------
    address : str
        Where it listens.
    delay : float
        Seconds that each byte stays here, each way.
    rate : float or None
        Bytes in a second and direction.
    mute : set of str
        Directions in which bytes are taken and never delivered.
    refuse : bool
        New connections are closed at once.
    passed : dict
        Bytes taken so far, by direction.
    """

    def __init__(self, to: str) -> None:
        self._to = to
        self.delay = 0.0
        self.rate: float | None = None
        self.mute: set[str] = set()
        self.refuse = False
        self.passed = {TO_WORKER: 0, FROM_WORKER: 0}
        self.flipped = 0
        self._flip_at: dict[str, int] = {}
        self._actions: dict[str, tuple[int, Callable[[], object]]] = {}
        self._lock = threading.Lock()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def flip(self, direction: str, after: int) -> None:
        """Flip a bit of the byte that comes ``after`` bytes from now."""
        with self._lock:
            self._flip_at[direction] = self.passed[direction] + after

    def when(self, direction: str, after: int, action: Callable[[], object]) -> None:
        """Call ``action`` when the byte ``after`` bytes from now has come, before it goes on."""
        with self._lock:
            self._actions[direction] = (self.passed[direction] + after, action)

    def cut(self, *, rude: bool = True) -> None:
        """Close all connections: with a reset, or as if both sides had ended."""
        self._loop.call_soon_threadsafe(self._cut, rude)

    def heal(self) -> None:
        """Forward as a good network does again."""
        with self._lock:
            self.delay, self.rate, self.refuse = 0.0, None, False
            self.mute = set()
            self._flip_at.clear()
            self._actions.clear()

    def close(self) -> None:
        """End it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- on its thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._socket, limit=_CHUNK)
        )
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._cut(rude=True)
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def _cut(self, rude: bool) -> None:
        for writer in list(self._writers):
            end = writer.get_extra_info("socket")
            if rude and end is not None:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if rude else writer.close()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.add(back)
        on: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                return
            host, port = self._to.rsplit(":", 1)
            far, on = await asyncio.open_connection(host, int(port), limit=_CHUNK)
            self._writers.add(on)
            for writer in (back, on):
                writer.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                )
            ways = [
                asyncio.ensure_future(self._forward(near, on, TO_WORKER)),
                asyncio.ensure_future(self._forward(far, back, FROM_WORKER)),
            ]
            _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):  # asyncio's servers would log the latter
            pass
        finally:
            for writer in (back, on):
                if writer is not None:
                    self._writers.discard(writer)
                    writer.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS)
        writing = asyncio.ensure_future(self._write(queue, writer))
        try:
            while data := await reader.read(_CHUNK):
                data = self._through(direction, data)
                if direction in self.mute:
                    continue
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)
                await queue.put((self._loop.time() + self.delay, data))
            await queue.put((self._loop.time() + self.delay, b""))
            await writing
        except OSError:
            pass
        finally:
            writing.cancel()

    async def _write(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, data = await queue.get()
            if not data:
                return
            wait = due - self._loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            writer.write(data)
            await writer.drain()

    def _through(self, direction: str, data: bytes) -> bytes:
        """Count bytes, flip the one to be flipped, and do what was to be done when it comes."""
        action: Callable[[], object] | None = None
        with self._lock:
            begin = self.passed[direction]
            self.passed[direction] = end = begin + len(data)
            at = self._flip_at.get(direction)
            if at is not None and begin <= at < end:
                del self._flip_at[direction]
                harmed = bytearray(data)
                harmed[at - begin] ^= 0x10
                data = bytes(harmed)
                self.flipped += 1
            todo = self._actions.get(direction)
            if todo is not None and end > todo[0]:
                del self._actions[direction]
                action = todo[1]
        if action is not None:
            action()
        return data
