"""The first moments of the command line, while modules are imported: Ctrl-C ends it in one line.

Imports next to nothing itself: until it has run, an interruption would show a traceback.
"""

import os
import signal
from types import FrameType

_INTERRUPTED = 130


def begin() -> None:
    """Let Ctrl-C end the process at once, unless somebody else has said what it does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: from here on there is something to put in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"moesaic: interrupted\n")
    finally:
        os._exit(_INTERRUPTED)


def main() -> None:
    """Run the ``moesaic`` command."""
    begin()
    from moesaic.cli import main as run

    run()
