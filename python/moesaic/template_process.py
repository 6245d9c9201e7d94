"""The processes that render chat templates: started when needed, bounded in time and size.

Each answers one request at a time (_chat_worker.py says how). A caller takes an idle one or starts
another, up to a few, so that a slow template, or a process that stands still, holds up no other.
Writing a request, waiting and reading its answer share one deadline. Not here: what is rendered.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from moesaic.errors import InternalError

WHERE = "[ChatTemplate.render]"
_START_SECONDS = 60.0
_GRACE_SECONDS = 0.25  # the process reports an overrun itself when it can, which says more
_MOST_PROCESSES = 4
_MOST_IDLE = 2
_ENDED_BY = ("time", "size", "memory", "crash")


class _Worker:
    """One rendering process; answers one request at a time."""

    def __init__(self, max_memory: int) -> None:
        self.max_memory = max_memory
        setup = {"path": sys.path, "max_memory": max_memory}
        script = Path(__file__).with_name("_chat_worker.py")
        # Preloaded libraries (sanitizers, allocators) reserve more address space than the limit.
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        command = [sys.executable or "python3", "-I", "-S", "-X", "utf8", str(script)]
        try:
            self.process = subprocess.Popen(
                [*command, json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the caller
            )
        except OSError as error:
            raise InternalError(
                f"{WHERE} cannot start {sys.executable!r} to render templates: {error}"
            ) from error
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        self.call(b"null", _START_SECONDS)

    def call(self, data: bytes, seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer, at most ``seconds`` for both."""
        deadline = time.monotonic() + seconds
        try:
            self._write(struct.pack("<Q", len(data)) + data, deadline)
            size = struct.unpack("<Q", self._read(8, deadline))[0]
            return json.loads(self._read(size, deadline))  # type: ignore[no-any-return]
        except TimeoutError:
            self.close()
            return {"error": "time"}
        except EOFError:
            self.close()
            code = self.process.returncode
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return {"error": "time"} if how == "SIGXCPU" else {"error": "crash", "message": how}
        except BaseException:
            self.close()
            raise

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [self._stdin], [], left)[1]:
                raise TimeoutError
            try:
                rest = rest[os.write(self._stdin, rest[: 1 << 20]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:  # the read that follows says how it ended
                return

    def _read(self, size: int, deadline: float) -> bytes:
        chunks: list[bytes] = []
        while size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._stdout], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(self._stdout, min(size, 1 << 20))
            if not chunk:
                raise EOFError
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self._close_pipes()
        self.process.wait()

    def forget(self) -> None:
        """Let go of a process that belongs to the parent."""
        self._close_pipes()
        self.process.returncode = 0

    def _close_pipes(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class _Pool:
    """Idle processes, and how many work. The lock is held only to count, never for work."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.idle: list[_Worker] = []
        self.busy: set[_Worker] = set()
        self.starting = 0

    def call(self, data: bytes, seconds: float, max_memory: int) -> dict[str, Any]:
        """Render in one of the processes, within ``seconds`` from when one is free."""
        worker = self._take(seconds, max_memory)
        if worker is None:
            return {"error": "busy"}
        keep = False
        try:
            answer = worker.call(data, seconds + _GRACE_SECONDS)
            keep = answer.get("error") not in _ENDED_BY
            return answer
        finally:
            self._give_back(worker, keep)

    def _take(self, seconds: float, max_memory: int) -> _Worker | None:
        """An idle process of that memory, or a new one; None when all were busy for too long."""
        with self.changed:
            if not self.changed.wait_for(self._has_room, seconds):
                return None
            fitting = [w for w in self.idle if w.max_memory == max_memory]
            if fitting:
                self.idle.remove(fitting[-1])
                self.busy.add(fitting[-1])
                return fitting[-1]
            spare = self.idle[:]
            self.idle.clear()
            self.starting += 1
        worker = None
        try:
            for other in spare:
                other.close()
            worker = _Worker(max_memory)
        finally:
            with self.changed:
                self.starting -= 1
                if worker is not None:
                    self.busy.add(worker)
                self.changed.notify_all()
        return worker

    def _has_room(self) -> bool:
        return bool(self.idle) or len(self.busy) + self.starting < _MOST_PROCESSES

    def _give_back(self, worker: _Worker, keep: bool) -> None:
        with self.changed:
            self.busy.discard(worker)
            keep = keep and len(self.idle) < _MOST_IDLE
            if keep:
                self.idle.append(worker)
            self.changed.notify_all()
        if not keep:
            worker.close()

    def close(self) -> None:
        """End the idle processes."""
        with self.changed:
            idle, self.idle = self.idle, []
        for worker in idle:
            worker.close()


_pool = _Pool()


def call(data: bytes, seconds: float, max_memory: int) -> dict[str, Any]:
    """Send a request to a rendering process and return its answer.

    Parameters
    ----------
    data
        The request in JSON.
    seconds
        Until the answer, from when a process is free.
    max_memory
        Address space of the process, in bytes.

    Returns
    -------
    dict
        ``{"text": ...}``, or ``{"error": kind, ...}`` with kind ``"busy"`` where every process was
        taken for that long.
    """
    return _pool.call(data, seconds, max_memory)


def close() -> None:
    """End the processes that wait for work."""
    _pool.close()


def _forget() -> None:
    """After a fork the processes are the parent's, and a lost thread may hold the lock."""
    global _pool
    old, _pool = _pool, _Pool()
    for worker in (*old.idle, *old.busy):
        worker.forget()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
