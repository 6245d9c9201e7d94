"""What a cluster tells while its callers wait: a loss, a wait, a new plan, measuring, starting.

It goes to the logger ``moesaic`` and to the progress callbacks of the models concerned. Without
news it costs nothing: one thread sleeps in the core.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import Any

from moesaic import _core
from moesaic.progress import Progress, Reporter

__all__ = ["Bars", "Voice", "logger"]

#: WARNING: a worker was lost, and the call waits or re-plans. INFO: all else.
logger = logging.getLogger("moesaic")

_LONG_S = 3600.0
_JOIN_S = 2.0


class Voice:
    """Hands the news of a cluster's models on, from the first model until :meth:`close`."""

    def __init__(self) -> None:
        self.board = _core.NewsBoard()
        self._listeners: dict[int, tuple[Progress, str]] = {}
        self._thread: threading.Thread | None = None
        self._next = 0

    def add(self, progress: Progress, on_loss: str) -> int:
        """Begin to listen for one model, and return its number."""
        self._next += 1
        self._listeners[self._next] = (progress, on_loss)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_listen,
                args=(self.board, self._listeners),
                name="moesaic-voice",
                daemon=True,
            )
            self._thread.start()
        return self._next

    def forget(self, number: int) -> None:
        """Stop calling the model's callback."""
        self._listeners.pop(number, None)

    def close(self) -> None:
        """Hand on what is there, and end."""
        self.board.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    @staticmethod
    def say(text: str, progress: Progress = None) -> None:
        """Tell what the calling thread is about to do: "starting 3 workers"."""
        logger.info(text)
        if callable(progress):
            progress(text, 0, 0)


def _listen(board: _core.NewsBoard, listeners: dict[int, tuple[Progress, str]]) -> None:
    while True:
        news = board.next(_LONG_S)
        if news is None:
            if board.closed:
                return
            continue
        number, what, address, text, done, total = news
        progress, on_loss = listeners.get(number, (None, "raise"))
        if text:
            warn = what == "lost" and on_loss != "raise"
            logger.log(logging.WARNING if warn else logging.INFO, text.removeprefix("[Cluster] "))
        elif what == "re-planning" and done == 0:
            logger.info("re-planning without %s", address)
        if callable(progress):
            try:
                progress(_stage(what, address, total), int(done), int(total))
            except Exception:
                logger.exception("the progress callback failed, and is not called again")
                listeners.pop(number, None)


def _stage(what: str, address: str, total: float) -> str:
    if what == "waiting":
        return f"waiting ({total:g} s)"
    if what == "re-planning":
        return what
    return f"{what} {address}".rstrip()


class Bars:
    """A bar for what each worker is at while it loads, or the caller's callback."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, tuple[str, ExitStack, Reporter]] = {}  # by address
        self.active = Reporter(progress, "load").active

    def update(self, address: str, what: str, done: int, total: int) -> None:
        """Take the core's news of one worker."""
        if address not in self._bars or self._bars[address][0] != what:
            self._end(address)
            stack = ExitStack()
            reporter = stack.enter_context(Reporter(self._progress, what, of=address))
            self._bars[address] = (what, stack, reporter)
        self._bars[address][2].update(done, total)

    def _end(self, address: str) -> None:
        if address in self._bars:
            self._bars.pop(address)[1].close()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: Any) -> None:
        for address in list(self._bars):
            self._end(address)
