"""Progress of loading and of long prefills: a bar where somebody looks, a callback, or nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from moesaic.errors import ArgumentError

#: What ``progress=`` takes: None (a bar on a terminal or in a notebook), True, False, or
#: ``f(stage, done, total)`` with stage ``"load"`` (bytes), ``"prefill"`` (tokens), ``"generate"``
#: and ``"score"`` (items of a call with many); on a cluster what each worker does while it loads:
#: ``"pull host:port"``, ``"verify host:port"``, ... (bytes).
Progress = Callable[[str, int, int], object] | bool | None

_UNITS = {
    "prefill": (" tokens", False, 1.0),
    "generate": (" items", False, 1.0),
    "score": (" items", False, 1.0),
}
_BYTES = ("B", True, 0.5)


def check(progress: Progress) -> Progress:
    """Return ``progress`` if it is one."""
    if progress is None or isinstance(progress, bool) or callable(progress):
        return progress
    raise ArgumentError(
        f"[Model] progress: got {type(progress).__name__}, need None, True, False or a callable "
        "f(stage, done, total)"
    )


def somebody_looks() -> bool:
    """Whether stderr is a terminal, or this is a notebook."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it was closed
        return False


class Reporter:
    """Reports one stage; a context manager. ``update`` takes the amount done so far.

    ``of`` says whose stage it is where there are several at once.
    """

    def __init__(self, progress: Progress, stage: str, of: str = "") -> None:
        self._callback = progress if callable(progress) else None
        self._bar_wanted = progress is True or (progress is None and somebody_looks())
        self._stage = stage
        self._title = f"{stage} {of}".rstrip()
        self._bar: Any = None
        self._last: tuple[int, int] | None = None

    @property
    def active(self) -> bool:
        """Whether anything is reported to anybody."""
        return self._callback is not None or self._bar_wanted

    def update(self, done: int, total: int) -> None:
        """Report ``done`` of ``total``; the same figures again are not reported."""
        if total <= 0 or self._last == (done, total):
            return
        self._last = (done, total)
        if self._callback is not None:
            self._callback(self._title, done, total)
        elif self._bar_wanted:
            if self._bar is None:
                self._bar = self._make_bar(total)
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def _make_bar(self, total: int) -> Any:
        with warnings.catch_warnings():
            # A notebook without ipywidgets has a bar of text; that is no news for its reader.
            warnings.filterwarnings("ignore", "IProgress not found")
            from tqdm.auto import tqdm

        unit, scale, delay = _UNITS.get(self._stage, _BYTES)
        return tqdm(
            total=total,
            desc=self._title,
            unit=unit,
            unit_scale=scale,
            delay=delay,  # what is quick shows no bar
            leave=False,
            file=sys.stderr,
        )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
