"""``moesaic worker``: this machine's part of a cluster, until it is told to stop.

The work is the core's. Here: options, signals, the log, and the pipes of who started the process
(launcher.py). Imports little, so that a worker starts at once and stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic import _core
from moesaic._version import __version__
from moesaic.cli.terminal import command, human_bytes, plain
from moesaic.errors import ArgumentError, IoError
from moesaic.folders import cache_folder, make_private, replaceable
from moesaic.key_source import key_from_environment
from moesaic.units import parse_bytes, parse_memory

_LAST_MOMENTS_S = 0.5
_END_DEADLINE_S = 10.0
_MOST_THREADS = 1024
_MOST_ENTRIES = 20_000


@command
def worker(
    listen: Annotated[
        str, typer.Option("--listen", "-l", help="HOST:PORT to listen on; port 0 takes a free one.")
    ] = "127.0.0.1:9777",
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            "-k",
            help="The cluster's key (moesaic keygen); also taken from $MOESAIC_KEY. Without one "
            "only this machine can connect.",
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", "-m", help="Folder of GGUF files to use instead of pulling."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            help="Folder for pulled weights and digests.  [default: moesaic in the user's cache]",
            show_default=False,
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            "--cache-size",
            help="Most that pulled weights may take of the disk, like 200G; those used longest ago "
            "go first. 5 % of the disk stay free in any case.  [default: that alone]",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep nothing on disk.")] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Memory for models, like 100G.  [default: what is free, less headroom]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", "-t", help="CPU threads.  [default: all]", show_default=False),
    ] = None,
    advertise: Annotated[
        str,
        typer.Option("--advertise", help="HOST:PORT others dial, when not the one listened on."),
    ] = "",
    plain_beyond_loopback: Annotated[
        bool,
        typer.Option(
            "--plain-beyond-loopback",
            help="Without a key, listen beyond this machine: anybody there can use the worker and "
            "read everything.",
        ),
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log one JSON object a line.")
    ] = False,
    json_ready: Annotated[
        bool, typer.Option("--json-ready", help="Print one JSON line on stdout when ready.")
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            envvar="MOESAIC_RATES",
            help="What this machine reaches, for plans, instead of measuring it: bytes read and "
            "int8 operations per second, like 215G,30T.",
        ),
    ] = None,
    key_fd: Annotated[
        int | None, typer.Option("--key-fd", help="Read the key from this descriptor.", hidden=True)
    ] = None,
    lifeline_fd: Annotated[
        int | None,
        typer.Option("--lifeline-fd", help="End when this descriptor is closed.", hidden=True),
    ] = None,
    models_for_now: Annotated[
        bool,
        typer.Option(
            "--models-for-now",
            help="Make the folder of models, and remove it with the end of the lifeline.",
            hidden=True,
        ),
    ] = False,
) -> None:
    """Serve this machine's memory and CPU to a cluster. One log line per event on stderr."""
    if lifeline_fd is None:  # a service: what it holds, prompts and the key, is not for dumps
        _core.forbid_core_dumps()
    stop = Stop()
    stop.catch_signals()
    ours = models if models_for_now else None
    if ours is not None:
        make_private(ours)
    if lifeline_fd is not None:
        watch(lifeline_fd, stop, ours)
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise ArgumentError(f"[worker] --threads: got {threads}, need 1 to {_MOST_THREADS}")
    if no_cache and cache is not None:
        raise ArgumentError("[worker] got --cache and --no-cache, need one of them")
    if models is not None and not models.is_dir():
        raise ArgumentError(f"[worker] --models: {models} is not a directory")
    why = "" if models is None or models_for_now else replaceable(models)
    if why:
        text = f"--models {models}: {why}; until then others can change the weights that it serves"
        write_event("warning", text, {"folder": str(models)}, log_json)
    known = (0.0, 0.0) if rates is None else parse_rates(rates)
    folder = None if no_cache else make_private(cache or cache_folder())
    memory_bytes = 0 if memory is None else parse_bytes(memory, "--memory", "worker")
    cache_bytes = 0 if cache_size is None else parse_memory(cache_size, "--cache-size", "worker")
    if cache_size is not None and cache_bytes <= 0:
        raise ArgumentError(f"[worker] --cache-size: got {cache_size}, need more than 0")
    free_bytes = _core.available_memory_bytes()
    if memory_bytes > free_bytes:
        text = f"--memory {memory}, but {human_bytes(free_bytes)} are free here now"
        write_event("warning", text, {"free_bytes": free_bytes}, log_json)
    cluster_key = chosen_key(key, key_fd)
    ready = ready_fields(cluster_key, folder, models)
    core = _core.Worker(
        listen=listen,
        advertise=advertise,
        key=cluster_key,
        plain_beyond_loopback=plain_beyond_loopback,
        models=os.fsencode(models) if models else b"",
        cache=os.fsencode(folder) if folder else b"",
        cache_bytes=cache_bytes,
        memory_bytes=memory_bytes,
        read_bytes_per_s=known[0],
        matmul_ops_per_s=known[1],
        threads=threads or 0,
        backend="auto",
        release=__version__,
        ready_text=", ".join(f"{name} {value}" for name, value in ready),
        ready_fields=ready,
    )
    log = threading.Thread(target=write_log, args=(core, log_json, stop), daemon=True)
    log.start()
    if json_ready:
        print_ready(core.address)
    stop.wait()
    end_by_deadline(core)
    log.join(_LAST_MOMENTS_S)


def parse_rates(text: str) -> tuple[float, float]:
    """``"215G,30T"`` as bytes and operations per second."""
    parts = text.split(",")
    if len(parts) != 2:
        raise ArgumentError(f"[worker] --rates: got {text!r}, need two like 215G,30T")
    read, matmul = (float(parse_bytes(part, "--rates", "worker")) for part in parts)
    if not (read > 0 and matmul > 0):
        raise ArgumentError(f"[worker] --rates: got {text!r}, need both above 0")
    return read, matmul


class Stop:
    """That the worker is to end: said by a signal, the lifeline, or the worker itself.

    The waiting is a read of a pipe into which signals write: one that comes just before a wait on a
    lock begins would be heard only with the next one.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def catch_signals(self) -> None:
        """SIGTERM and SIGINT end the worker cleanly; a second one ends it at once."""

        def handle(number: int, frame: Any) -> None:
            if self._wanted:
                os._exit(1)
            self._wanted = True

        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def set(self) -> None:
        """Say it; from any thread."""
        self._wanted = True
        with contextlib.suppress(BlockingIOError):  # full: there is enough to wake up from
            os.write(self._write, b"\0")

    def wait(self) -> None:
        """Wait until it was said."""
        while not self._wanted:
            os.read(self._read, 1)


def watch(lifeline: int, stop: Stop, folder: Path | None) -> None:
    """End when the other end of the lifeline is gone; soon, whatever the process does then."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(lifeline, 1):  # nobody writes; what ends it is the end of file
                pass
        if folder is not None:  # first of all: nobody comes after us who could
            shutil.rmtree(folder, ignore_errors=True)
        stop.set()
        time.sleep(_LAST_MOMENTS_S)
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def chosen_key(path: Path | None, descriptor: int | None) -> _core.ClusterKey | None:
    """Return the key that the options or the environment give."""
    from_environment = key_from_environment()  # taken in any case: it must not stay there
    if path is not None and descriptor is not None:
        raise ArgumentError("[worker] got --key and --key-fd, need one of them")
    if path is not None:
        return _core.ClusterKey.read(os.fsencode(path))
    if descriptor is not None:
        try:
            with open(descriptor, "rb") as file:  # noqa: PTH123
                return _core.ClusterKey.parse(file.read(4096))
        except OSError as error:
            raise IoError(f"[worker] --key-fd {descriptor}: {error.strerror}") from None
    return from_environment


def ready_fields(
    key: _core.ClusterKey | None, cache: Path | None, models: Path | None
) -> list[tuple[str, str | int | float]]:
    """Return what the log says of this worker's key, cache and models when it is ready."""
    fields: list[tuple[str, str | int | float]] = [
        ("cache", "off" if cache is None else str(cache)),
        ("key", "none" if key is None else key.name()),
    ]
    if models is not None:
        fields += [("models", str(models)), ("models_found", count_models(models))]
    return fields


def count_models(folder: Path) -> int:
    """Return how many GGUF files the folder has, as far as a moment's look goes."""
    n_files = n_entries = 0
    for _, folders, files in os.walk(folder):
        n_files += sum(name.endswith(".gguf") for name in files)
        n_entries += len(folders) + len(files)
        if n_entries > _MOST_ENTRIES:
            break
    return n_files


def end_by_deadline(core: _core.Worker) -> None:
    """End all work; at once when some of it does not end, as where a disk does not answer."""

    def give_up() -> None:
        write_event("stuck", "work does not end: the process ends without it", {}, False)
        os._exit(1)

    deadline = threading.Timer(_END_DEADLINE_S, give_up)
    deadline.daemon = True
    deadline.start()
    core.close()
    deadline.cancel()


def print_ready(address: str) -> None:
    """Tell who started this process where it listens."""
    line = {"event": "ready", "address": address, "pid": os.getpid(), "release": __version__}
    print(json.dumps(line), flush=True)


def write_log(core: _core.Worker, as_json: bool, stop: Stop) -> None:
    """Write what happens, one line each, until the worker is closed."""
    while True:
        news = core.next_event(3600.0)
        if news is not None:
            event, text, fields = news
            write_event(event, text, dict(fields), as_json)
        elif core.stopped:
            stop.set()
            return


def write_event(event: str, text: str, fields: dict[str, str | int | float], as_json: bool) -> None:
    """Write one line of the log."""
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    if as_json:
        record = {"time": now, "event": event, "text": text, **fields}
        line = json.dumps(record, ensure_ascii=False)
    else:
        with_time = "JOURNAL_STREAM" not in os.environ  # the journal has its own clock
        line = f"{now + ' ' if with_time else ''}{event}: {plain(text)}"
    with contextlib.suppress(OSError, ValueError):  # without a log the work goes on
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
