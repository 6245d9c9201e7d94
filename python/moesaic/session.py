"""Session: a sequence whose KV cache the caller holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt

from moesaic import _core, session_text
from moesaic.capture import Captures, resolve
from moesaic.errors import ArgumentError, ClosedError
from moesaic.generation import GenerateOptions
from moesaic.inputs import Prompt, Tokens, integer
from moesaic.progress import Reporter
from moesaic.results import Chunk, Generation

if TYPE_CHECKING:
    from moesaic.model_base import LoadedModel

#: What ``logits=`` takes: the last position's, every position's, or none.
LOGITS = ("last", "all", None)


class Session:
    """A sequence with its own KV cache; made by :meth:`Model.session`.

    Calls on one session from several threads run one after the other; while a :meth:`stream` of it
    is open, other calls that would write are refused. Memory is freed by ``close()``, at the end of
    a ``with`` block, or with the last reference.

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

    # An empty tuple is a sequence of names as well: the overlap is meant.
    @overload
    def forward(  # type: ignore[overload-overlap]
        self, tokens: Prompt, *, logits: Literal["last", "all"] = "last", capture: tuple[()] = ()
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def forward(  # type: ignore[overload-overlap]
        self, tokens: Prompt, *, logits: None, capture: tuple[()] = ()
    ) -> None: ...
    @overload
    def forward(
        self, tokens: Prompt, *, logits: str | None = "last", capture: str | Sequence[str]
    ) -> Captures: ...
    def forward(
        self,
        tokens: Prompt,
        *,
        logits: str | None = "last",
        capture: str | Sequence[str] = (),
    ) -> npt.NDArray[np.float32] | Captures | None:
        """Run tokens behind those in the cache.

        Parameters
        ----------
        tokens : sequence of int, integer array (n,), or str
            At least one; with those in the cache at most ``n_ctx``. Text is tokenised with control
            tokens recognised; it gets a begin-of-text token in an empty session only.
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

    def feed(self, prompt: Prompt) -> Tokens:
        """Run a prompt behind what is cached, for nothing but the cache.

        Parameters
        ----------
        prompt : str or tokens
            As for :meth:`forward`.

        Returns
        -------
        int32 array (n,)
            The tokens that were run, owned by the caller.

        Raises
        ------
        ArgumentError, OutOfMemoryError, ClosedError
            As for :meth:`forward`.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Model.demo().session() as s:
        ...     tokens = s.feed("In the beginning")
        ...     len(tokens) == len(s)
        True
        """
        with self._lock:
            self._check("Session.feed")
            ids = session_text.session_ids(self, prompt, "Session.feed")
            forward_many(self._model, [(self, ids)], None, (), "Session.feed")
        return ids

    def generate(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Generate behind what is cached, and keep it.

        Parameters
        ----------
        prompt : str, tokens or None
            Run first, as :meth:`feed` does. None: go on behind the session's last token, which is
            run once more for its logits.
        **options
            As for :meth:`Model.generate`; None for ``max_tokens`` is what is left of ``n_ctx``.

        Returns
        -------
        Generation
            Its ``prompt_tokens`` are those of this call.

        Raises
        ------
        ArgumentError
            A bad option or prompt, no room in ``n_ctx``, or a stream of this session is open.
        OutOfMemoryError
            The pool of KV pages is full of sessions that are held.
        ClosedError
            The session or its model was closed.

        Notes
        -----
        Afterwards the session has the prompt and the generated tokens, up to a stop string the
        token that completed it included, without an end-of-generation token. Penalties and a
        ``logits_processor`` see the whole session. An error or Ctrl-C leaves the session as it was
        before the call.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> with m.session() as s:
        ...     a = s.generate("In the", max_tokens=4, seed=1)
        ...     b = s.generate(max_tokens=4, seed=1)
        ...     whole = m.generate("In the", max_tokens=8, seed=1)
        ...     a.text + b.text == whole.text, len(s) == len(a.prompt_tokens) + 8
        (True, True)
        """
        return session_text.generate(self, prompt, options, "Session.generate")

    def stream(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[Chunk]:
        """Generate as :meth:`generate` does, yielding pieces of text as they come.

        Parameters
        ----------
        prompt : str, tokens or None
            As for :meth:`generate`.
        **options
            As for :meth:`generate`.

        Yields
        ------
        Chunk
            The last one has ``finish_reason``.

        Raises
        ------
        ArgumentError
            A bad option or prompt, at the call and not only in the loop.

        Notes
        -----
        Leaving the loop ends the generation; the session keeps what was handed out. An error or
        Ctrl-C while it waits leaves the session as it was before.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Model.demo().session() as s:
        ...     n = sum(len(c.tokens) for c in s.stream("In the", max_tokens=4, ignore_eos=True))
        ...     n
        4
        """
        return session_text.stream(self, prompt, options, "Session.stream")

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

        The file appears whole or not at all; it is readable by its owner only. It names the model
        by :attr:`Model.fingerprint`, which is made first.

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
            encoded = encoded_path(path, "Session.save")
            self._core.save(encoded, self._model._session_identity())

    def close(self) -> None:
        """Free the cache, now or when the call that uses it has ended. May be called again."""
        self._core.close()  # without the lock: it waits for no call

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
                    tokens=session_text.session_ids(session, tokens, where),
                    logits=kind,
                    session=session._core,
                    capture=names,
                )
            )
        outcomes = run_all(model, specs)
    return [
        Captures(outcome["captures"], outcome["logits"], model._fingerprint)
        if names
        else outcome["logits"]
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
