"""What a command owes its terminal: errors in one line, exit codes, JSON, tables, safe text.

Not here: what the commands do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, TextIO

import typer

from moesaic._tables import plain
from moesaic._tables import text_table as table
from moesaic.errors import ArgumentError, MoesaicError

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "NO_READER",
    "WRONG_USAGE",
    "command",
    "drop_output",
    "fail",
    "human_bytes",
    "in_flags",
    "interrupted",
    "jsonable",
    "one_line",
    "open_missing_streams",
    "plain",
    "print_json",
    "say_flags",
    "say_interrupted",
    "table",
]

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
NO_READER = 141  # 128 + SIGPIPE

#: Where in the package a message comes from.
_WHERE = re.compile(r"^\[(?:Model|Cluster|Session)(?:\.\w+)?\] ")
_HUGE_RANGE = re.compile(r"an integer from (-?\d+) to \d{15,}")


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command: what it raises on purpose becomes one line and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        make_output_safe()
        try:
            function(*args, **options)
            sys.stdout.flush()
        except ArgumentError as error:
            fail(error, WRONG_USAGE)
        except BrokenPipeError:  # `moesaic run ... | head -1`: the reader has what it wanted
            drop_output()
            raise typer.Exit(NO_READER) from None
        except MemoryError as error:  # also ours; Python's own has no message
            fail(str(error) or "out of memory", FAILED)
        except MoesaicError as error:
            fail(error, FAILED)
        except OSError as error:  # most likely of stdout, where nothing more can go
            drop_output()
            fail(error, FAILED)
        except KeyboardInterrupt:
            interrupted()

    return run


def fail(error: object, code: int) -> None:
    """Say what is wrong in one line on stderr, and leave."""
    print(f"moesaic: {one_line(in_flags(str(error)))}", file=sys.stderr)
    raise typer.Exit(code) from None


@dataclass
class _Running:
    """The command that runs, and its flags by their Python names."""

    name: str = ""
    interrupted: bool = False
    flags: dict[str, str] = field(default_factory=dict)


_running = _Running()


def say_flags(name: str, params: Iterable[Any]) -> None:
    """Say which command runs, and what its options are called.

    Parameters
    ----------
    name : str
        The command's name.
    params : iterable of Typer's parameters
        Arguments are among them; they have no flags.
    """
    _running.name = name
    _running.interrupted = False
    _running.flags = {
        str(param.name): max(param.opts, key=len)
        for param in params
        if any(opt.startswith("--") for opt in param.opts)
    }


def in_flags(text: str) -> str:
    """Return a message of the package in the words of the command that runs: its flags.

    ``[Model.stream] top_p: got 2`` becomes ``[run] --top-p: got 2``, and ``n_ctx=2702`` becomes
    ``--n-ctx 2702``.
    """
    if not _running.name:
        return text
    text = _WHERE.sub(f"[{_running.name}] ", text, count=1)
    text = _HUGE_RANGE.sub(r"an integer >= \1", text)
    for name, flag in _running.flags.items():
        text = re.sub(rf"(?<=^\[{_running.name}\] ){name}(?=[:\[])", flag, text)
        text = re.sub(rf"(?<![\w-]){name}=(?=\S)", f"{flag} ", text)
        if "_" in name:  # no word of English
            text = re.sub(rf"(?<![\w-]){name}(?![\w=])", flag, text)
    return text


def say_interrupted() -> None:
    """Say that Ctrl-C has ended this command; once."""
    if not _running.interrupted:
        _running.interrupted = True
        print("moesaic: interrupted", file=sys.stderr)


def interrupted() -> None:
    """Leave after Ctrl-C."""
    say_interrupted()
    raise typer.Exit(INTERRUPTED) from None


def make_output_safe() -> None:
    """Make writing text never fail for its characters, and warnings one line each."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has replaced it
            stream.reconfigure(errors="replace")
    warnings.showwarning = show_warning


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as the command line's user needs it: without the place in our source."""
    said = one_line(in_flags(str(message)))
    print(f"moesaic: warning: {said}", file=file or sys.stderr)


def show_log() -> None:
    """Print what the library logs on stderr: losses always, what it is about to do on terminals."""
    logger = logging.getLogger("moesaic")
    if any(isinstance(handler, _Lines) for handler in logger.handlers):
        return
    logger.addHandler(_Lines())
    logger.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    logger.propagate = False


class _Lines(logging.Handler):
    """Writes each record as a line of this program."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stderr that is gone or was closed
            print(f"moesaic: {one_line(record.getMessage())}", file=sys.stderr, flush=True)


def open_missing_streams() -> None:
    """Give a process that was started without stdout or stderr (``>&-``) silent ones."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123


def drop_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail again."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
    except (OSError, ValueError):  # a stdout without a descriptor has nothing to flush
        pass


def one_line(text: object) -> str:
    """Return a message as one line, safe to print."""
    return plain(" ".join(str(text).split("\n")))


def jsonable(value: object) -> Any:
    """Plain JSON values of dataclasses, arrays, mappings and sequences."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars, without importing NumPy
        return value.tolist()
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, range):
        return [value.start, value.stop]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    json.dump(jsonable(value), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def human_bytes(n_bytes: float) -> str:
    """Bytes as a person would say them: ``1.6 GB`` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} TB"
