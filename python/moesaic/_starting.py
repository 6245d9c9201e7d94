"""The first moments of the command line, while modules are imported: Ctrl-C ends it in one line.

Imports nothing that is not there at an interpreter's start: until it has run, an interruption would
show a traceback. The package imports it before all else, and the command's processes begin here.
"""

import _signal  # type: ignore[import-not-found]
import os
import sys

_INTERRUPTED = 130


def is_command() -> bool:
    """Whether this process is ``moesaic ...`` or ``python -m moesaic ...``."""
    name = sys.argv[0].rpartition("/")[2] if sys.argv else ""
    return name == "moesaic" or (
        name == "-m" and sys.orig_argv[-len(sys.argv) :][:1] == ["moesaic"]
    )


def begin() -> None:
    """Let Ctrl-C end the process at once, unless somebody else has said what it does."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _leave)


def end() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: from here on there is something to put in order."""
    if _signal.getsignal(_signal.SIGINT) is _leave:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _leave(number: int, frame: object) -> None:
    try:
        os.write(2, b"moesaic: interrupted\n")
    finally:
        os._exit(_INTERRUPTED)


def main() -> None:
    """Run the ``moesaic`` command."""
    begin()
    from moesaic.cli import main as run

    run()


if is_command():
    begin()
