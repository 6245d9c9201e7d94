"""Launchers: who starts a cluster's workers. Here the one that starts them on this machine.

A worker that LocalLauncher starts holds the read end of a pipe, its lifeline. The write end is this
process's alone; when it closes, by ``close()`` or because the process is gone for whatever reason,
the worker ends. Nothing here speaks with a worker after its line that it is ready.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Protocol, TypeVar

from moesaic import _core
from moesaic.errors import ArgumentError, ClosedError, NetError
from moesaic.folders import make_private
from moesaic.voice import Voice

__all__ = ["Launcher", "LocalLauncher"]

_READY_S = 60.0  # a worker is ready within one; a machine that swaps may take longer
_END_S = 0.8  # then it is killed: close() is over within a second
_SHARE_OF_MEMORY = 0.9
_LOG_TAIL = 2000
_T = TypeVar("_T")


class Launcher(Protocol):
    """Starts workers somewhere."""

    def start(self, n: int) -> Sequence[str]:
        """Start ``n`` workers and return the addresses they listen on, ready."""

    def close(self) -> None:
        """End what was started; may be called again."""


class _Worker:
    """One process: reaped as soon as it ends, and never signalled after that."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self.log = log
        self.address = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._reap, name="moesaic-reaper", daemon=True).start()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):  # somebody else's waitpid(-1) was faster
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:  # between the two nobody sends a signal to a number that is free again
            self.process.wait()
        self._ended.set()

    def signal(self, number: int) -> None:
        with self._lock:
            if self.process.returncode is None:
                os.kill(self.process.pid, number)

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(max(seconds, 0.0))

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def close(self) -> None:
        """Let go of its pipe and its log."""
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()

    def said(self) -> str:
        """Return the end of its log."""
        size = os.fstat(self.log.fileno()).st_size
        tail = os.pread(self.log.fileno(), _LOG_TAIL, max(0, size - _LOG_TAIL))
        return tail.decode(errors="replace").strip()


class _Group:
    """What must end with a launcher, apart from it so that its finalizer can hold it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lifeline, self.lifeline_end = os.pipe()
        self.workers: list[_Worker] = []
        self.folder: Path | None = None  # of links to models; ours to remove
        self.lock = threading.Lock()
        self.closed = False
        _groups.add(self)

    def forget(self) -> None:
        """In a forked child: the workers belong to the parent, and so does their lifeline."""
        if not self.closed:  # without the lock, which a thread of the parent may have held
            self.closed = True
            os.close(self.lifeline)
            os.close(self.lifeline_end)

    def stop(self) -> None:
        if os.getpid() != self.pid:
            return
        with self.lock:
            if self.closed:
                return
            self.closed = True
        os.close(self.lifeline_end)
        os.close(self.lifeline)
        deadline = time.monotonic() + _END_S
        for worker in self.workers:
            worker.wait(deadline - time.monotonic())
        for worker in self.workers:
            if worker.alive:
                worker.signal(signal.SIGKILL)
        for worker in self.workers:
            worker.wait(5.0)  # a process that cannot be killed is the system's to report
            worker.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


_groups: weakref.WeakSet[_Group] = weakref.WeakSet()


def _forget_all() -> None:
    for group in list(_groups):
        group.forget()


os.register_at_fork(after_in_child=_forget_all)


class LocalLauncher:
    """Starts workers as processes of this machine, listening on loopback, with a key of their own.

    Parameters
    ----------
    threads : int
        CPU threads of each.
    models : str, os.PathLike or None
        Folder in which they look for files. None: a folder of links to what :meth:`offer` names.
    cache : str, os.PathLike or None
        Folder for what they keep. None: they keep nothing.
    memory : int or None
        Bytes that each may use. None: an equal share of what is free when they start.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        models: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        memory: int | None = None,
    ) -> None:
        self._key = _core.ClusterKey.random()
        self._threads = threads
        self._models = None if models is None else Path(models).absolute()
        self._cache = None if cache is None else Path(cache).absolute()
        self._memory = memory
        self._group = _Group()
        self._finalizer = weakref.finalize(self, self._group.stop)
        #: Called with the addresses of workers that were started: a cluster adds them.
        self.on_start: Callable[[Sequence[str]], None] | None = None

    @property
    def key(self) -> _core.ClusterKey:
        """The key of this launcher's workers, made for them."""
        return self._key

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the workers listen, also those that have ended."""
        return tuple(worker.address for worker in self._group.workers)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, as ``addresses``."""
        return tuple(worker.process.pid for worker in self._group.workers)

    def start(self, n: int) -> list[str]:
        """Start ``n`` workers and wait until they listen.

        Raises
        ------
        NetError
            One of them did not come up; the message has what it said. None is left then.
        """
        self._check_open()
        Voice.say(f"starting {n} worker" if n == 1 else f"starting {n} workers")
        memory = self._memory
        if memory is None:
            memory = int(_core.available_memory_bytes() * _SHARE_OF_MEMORY / n)
        if self._models is None:
            # The workers make it: what is there is there only as long as one of them is.
            name = f"moesaic-{secrets.token_hex(8)}"
            self._models = self._group.folder = Path(tempfile.gettempdir(), name)
        self._memory = memory
        try:
            started = undisturbed(lambda: [self._spawn("127.0.0.1:0") for _ in range(n)])
            self._wait_ready(started)
        except BaseException:  # Ctrl-C too
            self.close()
            raise
        addresses = [worker.address for worker in started]
        if self.on_start is not None:
            self.on_start(addresses)
        return addresses

    def restart(self, address: str) -> None:
        """Start a worker again that has ended, on the address it had.

        Raises
        ------
        ArgumentError
            The address is none of this launcher's, or its worker lives.
        NetError
            It did not come up.
        """
        self._check_open()
        if address not in self.addresses:
            raise ArgumentError(
                f'[LocalLauncher.restart] address: got "{address}", need one of {self.addresses}'
            )
        i = self.addresses.index(address)
        old = self._group.workers[i]
        if not old.wait(1.0):  # one just killed is still on its way out
            raise ArgumentError(f"[LocalLauncher.restart] the worker at {address} lives; kill it")
        new = undisturbed(lambda: self._spawn(address))
        self._group.workers.remove(new)
        self._group.workers[i] = new
        new.address = address
        old.close()
        try:
            self._wait_ready([new])
        except BaseException:
            new.signal(signal.SIGKILL)
            raise

    def kill(self, address: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a worker: SIGKILL as the power cut would, SIGSTOP, SIGCONT, ..."""
        self._find(address).signal(number)

    def log(self, address: str) -> str:
        """Return the end of a worker's log."""
        self._check_open()
        return self._find(address).said()

    def offer(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Let the workers find these files by their names; nothing is copied.

        With a folder of models of the caller's own this does nothing.
        """
        self._check_open()
        folder = self._group.folder
        if folder is None:
            return
        make_private(folder)
        for path in paths:
            target = Path(path).absolute()
            link = folder / target.name
            if link.is_symlink() and link.readlink() == target:
                continue
            fresh = folder / f".{target.name}.new"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(link)

    def close(self) -> None:
        """End the workers, within a second, also if Ctrl-C comes; may be called again."""
        undisturbed(self._finalizer)

    def _find(self, address: str) -> _Worker:
        for worker in self._group.workers:
            if worker.address == address:
                return worker
        raise ArgumentError(f'[LocalLauncher] got "{address}", need one of {self.addresses}')

    def _check_open(self) -> None:
        if self._group.closed:
            raise ClosedError("[LocalLauncher] it was closed; make another")

    def _command(self, listen: str, key_fd: int) -> list[str]:
        if not sys.executable:
            raise ArgumentError("[Cluster.local] sys.executable is empty: no Python to start")
        command = [sys.executable, "-P", "-m", "moesaic", "worker", "--listen", listen]
        command += ["--key-fd", str(key_fd), "--lifeline-fd", str(self._group.lifeline)]
        command += ["--json-ready", "--threads", str(self._threads), "--memory", str(self._memory)]
        command += ["--models", str(self._models)]
        command += ["--no-cache"] if self._cache is None else ["--cache", str(self._cache)]
        if self._group.folder is not None:
            command.append("--models-for-now")
        return command

    def _spawn(self, listen: str) -> _Worker:
        # A worker sees what this process sees: the same path, and no module of the current folder
        # in the place of one of Python's unless that is so here too.
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path if isinstance(p, str))
        with contextlib.ExitStack() as undo, self._group.lock:
            self._check_open()  # under the lock: the lifeline stays what it is meanwhile
            log = undo.enter_context(tempfile.TemporaryFile(prefix="moesaic-worker-"))
            key_fd, key_end = os.pipe()
            undo.callback(os.close, key_fd)
            with open(key_end, "wb") as file:  # noqa: PTH123
                file.write(self._key.text())  # shorter than a pipe, so it never waits
            process = subprocess.Popen(
                self._command(listen, key_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path},
                pass_fds=(key_fd, self._group.lifeline),
                process_group=0,  # Ctrl-C at the terminal is for this process alone
            )
            undo.pop_all()
            os.close(key_fd)
            worker = _Worker(process, log)
            self._group.workers.append(worker)
            return worker

    def _wait_ready(self, workers: list[_Worker]) -> None:
        deadline = time.monotonic() + _READY_S
        for worker in workers:
            worker.address = _ready_address(worker, deadline)


def undisturbed(work: Callable[[], _T]) -> _T:
    """Run work on a thread of its own: a Ctrl-C never strikes half-way through it.

    It is raised here at once, and the work goes on to its end.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends (Python 3.12), and starts no threads any more
        return work()
    while thread.is_alive():
        thread.join(0.05)
    if errors:
        raise errors[0]
    return results[0]


def _ready_address(worker: _Worker, deadline: float) -> str:
    """Read the line that a worker prints when it listens."""
    out = worker.process.stdout
    assert out is not None
    line = b""
    with out:
        while not line.endswith(b"\n"):
            if time.monotonic() > deadline:
                raise NetError(
                    f"[Cluster.local] a worker (pid {worker.process.pid}) was not ready within "
                    f"{_READY_S:.0f} s; it said: {worker.said() or 'nothing'}"
                )
            # In short turns: a Ctrl-C just before one begins is heard when it ends.
            if not select.select([out], [], [], 0.05)[0]:
                continue
            got = os.read(out.fileno(), 4096)
            if not got:
                worker.wait(1.0)
                raise NetError(
                    f"[Cluster.local] a worker (pid {worker.process.pid}) ended with code "
                    f"{worker.process.returncode} before it was ready; it said: "
                    f"{worker.said() or 'nothing'}"
                )
            line += got
    return str(json.loads(line)["address"])
