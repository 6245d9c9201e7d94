"""Arrays out of a model: logits, captures, sessions, and how probable texts are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moesaic import _core, scoring
from moesaic.capture import Captures, resolve
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
            Text is tokenised as a prompt is. At most ``n_ctx`` tokens.

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
        return Captures(outcome["captures"], outcome["logits"])

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
        """Read a session that :meth:`Session.save` wrote with the same model and cache type.

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
            The file is damaged, cut, or of another model.
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
        return Session(self, _core.load_session(self._engine, encoded))

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

    def score(
        self, contexts: Sequence[Prompt], continuations: Sequence[Prompt]
    ) -> list[tuple[float, bool]]:
        """Return how probable continuations are after their contexts.

        Parameters
        ----------
        contexts, continuations : sequences of str, or of tokens
            As many of one as of the other. Texts are joined before they are tokenised; a blank at
            the end of a context counts to the continuation. An empty context stands for the
            begin-of-text token.

        Returns
        -------
        list of (float, bool)
            Log-likelihood (natural logarithm) of all tokens of the continuation together, and
            whether greedy decoding would give exactly them.

        Raises
        ------
        ArgumentError
            Not as many of one as of the other, an empty continuation, bad tokens, or a pair longer
            than ``n_ctx``.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> likely, unlikely = m.score(["In the", "In the"], [" beginning", " qqqqqq"])
        >>> likely[0] > unlikely[0]
        True
        """
        self._engine.check_usable("Model.score")
        return scoring.score(self, contexts, continuations)

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
