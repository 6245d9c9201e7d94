"""Session: a sequence whose KV cache the caller holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic.capture import Captures, resolve
from moesaic.errors import ArgumentError, ClosedError
from moesaic.inputs import Tokens, integer, token_ids
from moesaic.progress import Reporter

if TYPE_CHECKING:
    from moesaic.model_base import LoadedModel

#: What ``logits=`` takes: the last position's, every position's, or none.
LOGITS = ("last", "all", None)


class Session:
    """A sequence with its own KV cache; made by :meth:`Model.session`.

    Calls on one session from several threads run one after the other. Memory is freed by
    ``close()``, at the end of a ``with`` block, or with the last reference.

    Examples
    --------
    >>> import moesaic
    >>> m = moesaic.Model.demo()
    >>> with m.session() as s:
    ...     last = s.forward(m.tokenize("In the"))
    ...     branch = s.fork()
    ...     s.forward(m.tokenize(" beginning", add_special=False)).shape == (m.config.vocab,)
    True
    """

    def __init__(self, model: LoadedModel, core: _core.Session) -> None:
        self._model = model
        self._core = core
        self._lock = threading.RLock()

    @property
    def tokens(self) -> Tokens:
        """Tokens in the cache, int32 (n,); a copy."""
        self._check("Session.tokens")
        return self._core.tokens

    def __len__(self) -> int:
        return int(self._core.n_tokens)

    @property
    def closed(self) -> bool:
        """Whether it (or its model) was closed."""
        return bool(self._core.closed)

    def forward(
        self,
        tokens: Sequence[int] | npt.NDArray[np.integer[Any]],
        *,
        logits: str | None = "last",
        capture: str | Sequence[str] = (),
    ) -> npt.NDArray[np.float32] | Captures | None:
        """Run tokens behind those in the cache.

        Parameters
        ----------
        tokens : sequence of int or integer array (n,)
            At least one; with those in the cache at most ``n_ctx``.
        logits : {"last", "all", None}
            Which positions' logits to return.
        capture : str or sequence of str
            Names to capture, globs allowed (see :meth:`Model.capture`).

        Returns
        -------
        float32 array, Captures or None
            Logits (vocab,) or (n, vocab), owned by the caller; None when ``logits`` is None. With
            ``capture`` a :class:`Captures`, whose ``.logits`` they are.

        Raises
        ------
        ArgumentError
            Bad tokens, too many, or an unknown name.
        OutOfMemoryError
            The pool of KV pages is full.
        ClosedError
            The session or its model was closed.

        Notes
        -----
        An error or Ctrl-C leaves the session as it was before the call.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> with m.session() as s:
        ...     s.forward([1, 2], logits=None)
        ...     out = s.forward([3], capture="final_norm")
        >>> out["final_norm"].shape == (1, m.config.d_model), out.logits.shape
        (True, (2048,))
        """
        return forward_many(self._model, [(self, tokens)], logits, capture, "Session.forward")[0]

    def truncate(self, n: int) -> None:
        """Keep the first n tokens and drop the rest.

        Parameters
        ----------
        n : int
            0 to ``len(session)``.

        Raises
        ------
        ArgumentError
            No integer, or out of range.
        ClosedError
            The session or its model was closed.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Model.demo().session() as s:
        ...     _ = s.forward([1, 2, 3])
        ...     s.truncate(1)
        ...     s.tokens.tolist()
        [1]
        """
        n = integer(n, "n", "Session.truncate", 0)
        with self._lock:
            self._check("Session.truncate")
            self._core.truncate(n)

    def fork(self, n: int | None = None) -> Session:
        """Make a session that begins with this one's first n tokens (all by default).

        Whole pages of the cache are shared, so that a fork costs next to nothing. Both go on
        independently, also when the other one is closed.

        Parameters
        ----------
        n : int or None
            0 to ``len(session)``; None: all.

        Returns
        -------
        Session
            To be closed by itself; a context manager.

        Raises
        ------
        ArgumentError
            No integer, or out of range.
        OutOfMemoryError
            A page that only part of is shared must be copied, and the pool is full.
        ClosedError
            The session or its model was closed.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Model.demo().session() as s:
        ...     _ = s.forward([1, 2, 3])
        ...     with s.fork(2) as branch:
        ...         branch.tokens.tolist(), len(s)
        ([1, 2], 3)
        """
        with self._lock:
            self._check("Session.fork")
            length = len(self)
            n = length if n is None else integer(n, "n", "Session.fork", 0, length)
            return Session(self._model, self._core.fork(n))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokens and cache to a file that :meth:`Model.load_session` reads.

        The file appears whole or not at all; it is readable by its owner only.

        Parameters
        ----------
        path : str or os.PathLike
            Where to; an existing file is replaced.

        Raises
        ------
        IoError
            The operating system refused.
        ClosedError
            The session or its model was closed.

        Examples
        --------
        >>> import moesaic, pathlib, tempfile
        >>> m = moesaic.Model.demo()
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "chapter.session"
        >>> with m.session() as s:
        ...     _ = s.forward([1, 2, 3])
        ...     s.save(path)
        >>> len(m.load_session(path))
        3
        """
        with self._lock:
            self._check("Session.save")
            self._core.save(encoded_path(path, "Session.save"))

    def close(self) -> None:
        """Free the cache. May be called again."""
        with self._lock:
            self._core.close()

    def _check(self, where: str) -> None:
        self._model._engine.check_usable(where)
        if self._core.closed:
            raise ClosedError(f"[{where}] session: it is closed; make a new one by Model.session()")

    def __enter__(self) -> Session:
        self._check("Session")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "Session(closed)" if self.closed else f"Session({len(self)} tokens)"


def encoded_path(path: str | os.PathLike[str], where: str) -> bytes:
    """Return the bytes that the operating system knows a path by."""
    try:
        encoded = os.fsencode(path)
    except TypeError:
        raise ArgumentError(
            f"[{where}] path: got {type(path).__name__}, need str or os.PathLike"
        ) from None
    if b"\0" in encoded:
        raise ArgumentError(f"[{where}] path: got a NUL character in it, need a path")
    return encoded


def logits_name(logits: str | None, where: str) -> str:
    """Return the core's name of a ``logits=`` option."""
    if logits not in LOGITS:
        raise ArgumentError(f'[{where}] logits: got {logits!r}, need "last", "all" or None')
    return "none" if logits is None else logits


@contextmanager
def _locked(sessions: Iterable[Session]) -> Iterator[None]:
    """Hold several sessions' locks; always taken in one order, so that nobody waits in a circle."""
    with ExitStack() as stack:
        for session in sorted(sessions, key=id):
            stack.enter_context(session._lock)
        yield


def forward_many(
    model: LoadedModel,
    items: Sequence[tuple[Session, Any]],
    logits: str | None,
    capture: str | Sequence[str],
    where: str,
) -> list[npt.NDArray[np.float32] | Captures | None]:
    """Run rows of several sessions together; see :meth:`Model.forward_many`."""
    kind = logits_name(logits, where)
    names = resolve(capture, model.capture_names, where) if capture else []
    if not isinstance(items, Iterable):
        raise ArgumentError(
            f"[{where}] items: got {type(items).__name__}, need pairs (session, tokens)"
        )
    items = list(items)
    for item in items:
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Session)):
            raise ArgumentError(
                f"[{where}] items: got {type(item).__name__}, need pairs (session, tokens)"
            )
        if item[0]._model is not model:
            raise ArgumentError(f"[{where}] session: it belongs to another model")
    sessions = [session for session, _ in items]
    if len({id(session) for session in sessions}) != len(sessions):
        raise ArgumentError(
            f"[{where}] session: got one twice, need each once; use fork() for a second branch"
        )
    with _locked(sessions):
        specs = []
        for session, tokens in items:
            session._check(where)
            specs.append(
                _core.RequestSpec(
                    where=where,
                    tokens=token_ids(tokens, model.config.vocab, where),
                    logits=kind,
                    session=session._core,
                    capture=names,
                )
            )
        outcomes = run_all(model, specs)
    return [
        Captures(outcome["captures"], outcome["logits"]) if names else outcome["logits"]
        for outcome in outcomes
    ]


def run_all(model: LoadedModel, specs: list[_core.RequestSpec]) -> list[dict[str, Any]]:
    """Run requests that generate nothing, to their outcomes. Ctrl-C cancels them all."""
    if not specs:
        return []
    batch = _core.Batch(model._engine, specs)
    outcomes: dict[int, dict[str, Any]] = {}
    done = [0] * len(specs)
    totals = [0] * len(specs)
    try:
        with Reporter(model._progress, "prefill") as report:
            while len(outcomes) < len(specs):
                for i in batch.wait():
                    news = batch.take(i)
                    if report.active:
                        done[i], totals[i] = news["prompt_rows_done"], news["prompt_rows"]
                        report.update(sum(done), sum(totals))
                    if news["finished"]:
                        outcomes[i] = batch.outcome(i)
    finally:
        if len(outcomes) < len(specs):
            batch.settle()
    return [outcomes[i] for i in range(len(specs))]
