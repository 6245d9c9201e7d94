"""Arrays out of a model: logits, captures, sessions, and how probable texts are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from moesaic import _core, scoring
from moesaic.capture import Captures, resolve
from moesaic.errors import MoesaicError
from moesaic.inputs import Prompt
from moesaic.model_base import LoadedModel
from moesaic.session import Session, encoded_path, forward_many, logits_name, run_all


class ArrayMethods(LoadedModel):
    """The methods of :class:`moesaic.Model` that give arrays and figures."""

    def forward(self, tokens: Prompt) -> npt.NDArray[np.float32]:
        """Run tokens from an empty cache and return the logits of every position.

        Parameters
        ----------
        tokens : sequence of int, integer array (n,), or str
            Text is tokenised as a prompt of :meth:`generate` is. At most ``n_ctx`` tokens.

        Returns
        -------
        float32 array (n, vocab)
            Row i predicts the token behind position i. Owned by the caller.

        Raises
        ------
        ArgumentError
            Not integers, not one-dimensional, none, outside the vocabulary, or too many.
        OutOfMemoryError
            The logits or the KV cache do not fit.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> m.forward([1, 2, 3]).shape == (3, m.config.vocab)
        True
        """
        where = "Model.forward"
        self._engine.check_usable(where)
        spec = _core.RequestSpec(where=where, tokens=self._ids(tokens, where), logits="all")
        logits: npt.NDArray[np.float32] = run_all(self, [spec])[0]["logits"]
        return logits

    def capture(
        self, tokens: Prompt, names: str | Sequence[str], *, logits: str | None = "all"
    ) -> Captures:
        """Run tokens from an empty cache and return what is inside the model on the way.

        Parameters
        ----------
        tokens : sequence of int, integer array (n,), or str
            As for :meth:`forward`.
        names : str or sequence of str
            ``embed``, ``blocks.N.`` with ``resid_pre``, ``attn_out``, ``resid_mid``, ``mlp_out``,
            ``resid_post``, ``router.logits``, ``router.experts``, ``router.weights``;
            ``final_norm`` and ``logits``. Globs such as ``blocks.*.router.experts`` are allowed.
        logits : {"all", "last", None}
            Which positions' logits ``.logits`` holds. What is not asked for is not computed.

        Returns
        -------
        Captures
            Mapping of name to array, (n, width) each, float32 or (``router.experts``) int32.

        Raises
        ------
        ArgumentError
            Bad tokens, or a name the model does not have; the nearest are listed.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> c = m.capture("In the beginning", ["blocks.*.resid_post", "final_norm"])
        >>> c["final_norm"].shape[1] == m.config.d_model
        True
        """
        where = "Model.capture"
        self._engine.check_usable(where)
        spec = _core.RequestSpec(
            where=where,
            tokens=self._ids(tokens, where),
            logits=logits_name(logits, where),
            capture=resolve(names, self._capture_names, where),
        )
        outcome = run_all(self, [spec])[0]
        return Captures(outcome["captures"], outcome["logits"], self._fingerprint)

    def session(self) -> Session:
        """Open a sequence with a KV cache of its own.

        Returns
        -------
        Session
            Empty; a context manager.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Model.demo().session() as s:
        ...     len(s)
        0
        """
        self._engine.check_usable("Model.session")
        return Session(self, _core.open_session(self._engine))

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Read a session that :meth:`Session.save` wrote with the same weights and cache type.

        Parameters
        ----------
        path : str or os.PathLike
            The file.

        Returns
        -------
        Session
            With the tokens and the cache of the saved one; a context manager.

        Raises
        ------
        FormatError
            The file is damaged, cut, or of another model or other weights.
        IoError
            The operating system refused.
        OutOfMemoryError
            The pool of KV pages is full.

        Examples
        --------
        >>> import moesaic, pathlib, tempfile
        >>> m = moesaic.Model.demo()
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "chapter.session"
        >>> with m.session() as s:
        ...     _ = s.forward(m.tokenize("In the beginning"))
        ...     s.save(path)
        >>> with m.load_session(path) as again:
        ...     m.detokenize(again.tokens)
        'In the beginning'
        """
        self._engine.check_usable("Model.load_session")
        encoded = encoded_path(path, "Model.load_session")
        return Session(self, _core.load_session(self._engine, encoded, self._session_identity()))

    def forward_many(
        self,
        items: Sequence[tuple[Session, Sequence[int] | npt.NDArray[np.integer[Any]]]],
        *,
        logits: str | None = "last",
        capture: str | Sequence[str] = (),
    ) -> list[npt.NDArray[np.float32] | Captures | None]:
        """Run tokens of many sessions together, in shared steps.

        Parameters
        ----------
        items : sequence of (Session, tokens)
            Each session once.
        logits, capture
            As for :meth:`Session.forward`.

        Returns
        -------
        list
            For each item what :meth:`Session.forward` returns.

        Raises
        ------
        ArgumentError
            A session twice, one of another model, bad tokens, too many, or an unknown name.
        OutOfMemoryError
            The pool of KV pages is full; no session has changed.
        ClosedError
            A session or the model was closed.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> with m.session() as a, m.session() as b:
        ...     [x.shape == (m.config.vocab,) for x in m.forward_many([(a, [1, 2]), (b, [3])])]
        [True, True]
        """
        self._engine.check_usable("Model.forward_many")
        return forward_many(self, items, logits, capture, "Model.forward_many")

    # -- scores ------------------------------------------------------------------------------------

    @overload
    def score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        truncate: Literal["left"] | None = None,
        errors: Literal["raise"] = "raise",
    ) -> list[tuple[float, bool]]: ...
    @overload
    def score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        truncate: Literal["left"] | None = None,
        errors: Literal["return"],
    ) -> list[tuple[float, bool] | MoesaicError]: ...
    def score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        truncate: Literal["left"] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[tuple[float, bool]] | list[tuple[float, bool] | MoesaicError]:
        """Return how probable continuations are after their contexts.

        Parameters
        ----------
        contexts, continuations : sequences of str, or of tokens
            As many of one as of the other. An empty context stands for the begin-of-text token; an
            empty continuation has log-likelihood 0.
        truncate : {None, "left"}
            What to do with a context that is too long: refuse it, or cut its beginning off, so that
            context and continuation are ``n_ctx + 1`` tokens (the last one is only predicted).
        errors : {"raise", "return"}
            A pair that cannot be scored refuses the call, which names it by index, or has its
            ArgumentError in its place of the list.

        Returns
        -------
        list of (float, bool)
            Log-likelihood (natural logarithm) of all tokens of the continuation together, and
            whether greedy decoding would give exactly them. Suppressed tokens count as the model
            has them.

        Raises
        ------
        ArgumentError
            Not as many of one as of the other, bad tokens, or a pair longer than ``n_ctx``.

        Notes
        -----
        Context and continuation are tokenised as one text, control tokens recognised as by
        :meth:`generate`. Where it begins with the context's own tokens, the rest is the
        continuation's. Where a token spans the border, the rule is lm-evaluation-harness's: a blank
        at the end of the context counts to the continuation, and what follows as many tokens as
        the context alone has is scored after the context's own tokens. Where that leaves none
        ("th" and "e" are one token "the"), the whole text's tokens are scored from the first one
        that differs from the context's own.

        What items begin with together is run once: it is worth giving all of them in one call.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> likely, unlikely = m.score(["In the", "In the"], [" beginning", " qqqqqq"])
        >>> likely[0] > unlikely[0]
        True
        """
        self._engine.check_usable("Model.score")
        scores = scoring.score(self, contexts, continuations, truncate, errors)
        return cast("list[tuple[float, bool]]", scores) if errors == "raise" else scores

    @overload
    def iter_score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        truncate: Literal["left"] | None = None,
        errors: Literal["raise"] = "raise",
    ) -> Iterator[tuple[int, tuple[float, bool]]]: ...
    @overload
    def iter_score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        truncate: Literal["left"] | None = None,
        errors: Literal["return"],
    ) -> Iterator[tuple[int, tuple[float, bool] | MoesaicError]]: ...
    def iter_score(
        self,
        contexts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        truncate: Literal["left"] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[tuple[int, Any]]:
        """Score as :meth:`score` does, yielding each result when it is there.

        What has been yielded is kept when the rest is interrupted.

        Parameters
        ----------
        contexts, continuations, truncate, errors
            As for :meth:`score`.

        Yields
        ------
        (int, (float, bool))
            Index of the pair, and its result; not in the order of the indices.

        Raises
        ------
        ArgumentError
            As for :meth:`score`, at the call and not only in the loop.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> kept = dict(m.iter_score(["In the", "And the"], [" beginning", " earth"]))
        >>> sorted(kept)
        [0, 1]
        """
        where = "Model.iter_score"
        self._engine.check_usable(where)
        return scoring.iter_score(self, contexts, continuations, truncate, errors, where)

    def score_rolling(self, texts: Sequence[Prompt]) -> list[float]:
        """Return the log-likelihood of whole texts, of any length.

        Parameters
        ----------
        texts : sequence of str or of tokens
            Each token is predicted once, from up to ``n_ctx`` tokens before it; the first from the
            begin-of-text token.

        Returns
        -------
        list of float
            Natural logarithms; 0 for an empty text.

        Raises
        ------
        ArgumentError
            Not a list, or bad tokens in it.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> likely, unlikely = m.score_rolling(["In the beginning", "ning the In begin"])
        >>> likely > unlikely
        True
        """
        self._engine.check_usable("Model.score_rolling")
        return scoring.score_rolling(self, texts)
