"""LoadedModel: what a running model is and owns. The methods that use it are in model_*.py.

:class:`moesaic.Model` puts them together.
"""

from __future__ import annotations

import html
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic._tables import html_table
from moesaic.config import Config
from moesaic.errors import ArgumentError, FormatError
from moesaic.fingerprint import Fingerprint
from moesaic.inputs import Tokens, integer, prompt_ids, token_ids
from moesaic.overrides import Applied, Overlaid, Override
from moesaic.progress import Progress
from moesaic.rendered import RenderedChat
from moesaic.vocabulary import check_special_ids

if TYPE_CHECKING:
    from moesaic.chat import ChatTemplate
    from moesaic.gguf import MetadataValue, Tensor
    from moesaic.tokenizer import Tokenizer

_T = TypeVar("_T", bound="LoadedModel")


class ModelFile(Protocol):
    """What a model needs of the file that it came from; :class:`moesaic.GGUF` has it all.

    The file need not be on this machine: a cluster gives the header that a worker sent.
    """

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """Every key and its value."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor by name."""

    def tokenizer(self) -> Tokenizer:
        """Make a tokenizer from the vocabulary, or raise FormatError."""

    def close(self) -> None:
        """Let go of the file."""


class LoadedModel:
    """An engine with the header of its file: what the model is, and its life.

    Made by :class:`moesaic.Model`; not for callers to make.
    """

    _engine: _core.Engine
    _file: ModelFile
    _path: str
    _fingerprint: Fingerprint | None
    _progress: Progress
    _deterministic: bool
    _overrides: Applied
    _config: Config
    _capture_names: tuple[str, ...]

    def _adopt(
        self,
        engine: _core.Engine,
        file: ModelFile,
        *,
        path: str,
        fingerprint: Fingerprint | None,
        deterministic: bool,
        progress: Progress,
        overrides: Applied,
        stacklevel: int,
    ) -> None:
        """Become the model of an engine that runs; a file that does not fit it closes both."""
        self._engine = engine
        self._file = file
        self._path = path
        self._fingerprint = fingerprint
        self._progress = progress
        self._deterministic = deterministic
        self._overrides = overrides
        self._config = Config._from_core(_core.engine_config(engine))
        self._capture_names = tuple(engine.capture_names)
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self._said_begin = False
        try:
            check_special_ids(file.metadata, self._config.vocab, path)
        except FormatError:
            self.close()
            raise
        trained = self._config.n_ctx_train
        if 0 < trained < engine.n_ctx:
            warnings.warn(
                f"[Model] n_ctx: got {engine.n_ctx}, but the model was trained for {trained} "
                "tokens; what it says beyond them may make no sense",
                stacklevel=stacklevel,
            )

    # -- what it is --------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """Shape and choices of the model; also readable after ``close()``."""
        return self._config

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """Every key of the file, with the values that :attr:`overrides` gave it."""
        if self._overrides.changed:
            return Overlaid(self._file.metadata, self._overrides.changed)
        return self._file.metadata

    @property
    def overrides(self) -> Mapping[str, Override]:
        """The keys of the file that it was loaded with other values for, as they were given.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo(overrides={"expert_used_count": 1})
        >>> dict(m.overrides), m.config.n_active
        ({'expert_used_count': 1}, 1)
        """
        return self._overrides.given

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor of the file by name: shape, type, bytes, and ``dequantize()``."""
        return self._file.tensors

    @property
    def path(self) -> str:
        """The file it was loaded from."""
        return self._path

    @property
    def fingerprint(self) -> str:
        """What the model is: a SHA-256 over its headers, all of its weights and its overrides.

        64 hex digits, the same for a file and its split set, other ones when a single weight or key
        differs. Saved sessions, results and clusters name a model by it. The first time that it is
        asked for, the whole file is read (with all cores; Ctrl-C ends it); the digests are
        remembered in the user's cache folder for as long as the file stays as it is.

        Raises
        ------
        FormatError
            The file has changed since it was loaded.
        IoError
            The operating system refused.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> len(m.fingerprint), m.generate("In", max_tokens=1).fingerprint == m.fingerprint
        (64, True)
        """
        if self._fingerprint is None:
            raise FormatError(f"[Model.fingerprint] {self._path}: not known of this model")
        return self._fingerprint()

    def _session_identity(self) -> str:
        """Return what saved sessions know the model by: its fingerprint and overrides."""
        changed = str(self._overrides)
        return f"{self.fingerprint}, overrides {changed}" if changed else self.fingerprint

    @property
    def n_ctx(self) -> int:
        """Most tokens of one sequence."""
        return int(self._engine.n_ctx)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of all sequences holds together."""
        return int(self._engine.kv_tokens)

    @property
    def device(self) -> str:
        """What it runs on, like ``"cpu: avx2, 2 threads"``."""
        return str(self._engine.device)

    @property
    def deterministic(self) -> bool:
        """Whether it was loaded with ``deterministic=True``."""
        return bool(self._deterministic)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of weights, of those made at load, of the KV pool, of scratch, and their sum.

        Scratch includes the keys that MLA keeps from step to step of a prompt.
        """
        return dict(self._engine.memory)

    @property
    def capture_names(self) -> tuple[str, ...]:
        """Every name that :meth:`capture` takes, in the order of the forward pass."""
        return self._capture_names

    def stats(self) -> dict[str, int]:
        """Return what the engine has done since it was loaded, and what it holds now.

        Returns
        -------
        dict of str to int
            ``steps``; rows that were run, ``prompt_rows`` and ``decode_rows``, and ``reused_rows``
            that an equal prefix saved; requests now ``waiting`` and ``active``; finished sequences
            ``cached`` for reuse; ``preemptions``, how often a request whose caller was away gave
            its part of the cache to others, to run its rows again; ``kv_tokens_free``.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> _ = m.forward([1, 2, 3])
        >>> m.stats()["prompt_rows"]
        3
        """
        return dict(self._engine.stats())

    # -- text --------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer made from the file's own vocabulary.

        Raises
        ------
        FormatError
            The file has no vocabulary, or one of an unknown kind.
        """
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._file.tokenizer()
            return self._tokenizer

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> Tokens:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
            Any text.
        add_special : bool
            Add begin- and end-of-text tokens where the model was trained so.
        parse_special : bool
            Recognise control tokens written in the text.

        Returns
        -------
        int32 array (n,)
            Owned by the caller.

        Raises
        ------
        ArgumentError
            Not a str, or with lone surrogates in it.
        FormatError
            The file has no vocabulary, or one of an unknown kind.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> m.detokenize(m.tokenize("And God said"))
        'And God said'
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Turn token ids into text; special tokens are left out.

        Parameters
        ----------
        tokens : sequence of int or integer array (n,)
            Ids of the vocabulary; none give an empty text.

        Returns
        -------
        str
            Bytes that are not UTF-8 come as U+FFFD.

        Raises
        ------
        ArgumentError
            Not integers, not one-dimensional, or outside the vocabulary.
        FormatError
            The file has no vocabulary, or one of an unknown kind.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> m.detokenize(m.generate("In the", temperature=0, max_tokens=4).prompt_tokens)
        'In the'
        """
        ids = token_ids(tokens, self._config.vocab, "Model.detokenize", allow_empty=True)
        return self.tokenizer.decode(ids)

    def to_str_tokens(
        self, text: str | Sequence[int] | npt.NDArray[np.integer[Any]], *, add_special: bool = True
    ) -> list[str]:
        """Return each token of a text, or of token ids, as text: labels for plots and tables.

        Parameters
        ----------
        text : str, sequence of int or integer array (n,)
            Text is tokenised with control tokens recognised, as a prompt is.
        add_special : bool
            Add begin- and end-of-text tokens where the model was trained so; of text only.

        Returns
        -------
        list of str
            One for each token, special ones included; bytes that are not UTF-8 by themselves come
            as U+FFFD.

        Raises
        ------
        ArgumentError
            Not text and not token ids of the vocabulary.
        FormatError
            The file has no vocabulary, or one of an unknown kind.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> m.to_str_tokens("And God said", add_special=False)
        ['And', ' G', 'od', ' said']
        """
        if isinstance(text, str):
            text = self.tokenizer.encode(text, add_special=add_special, parse_special=True)
        ids = token_ids(text, self._config.vocab, "Model.to_str_tokens", allow_empty=True)
        return [self._token_text(int(i)) for i in ids]

    def top(self, logits: npt.NDArray[np.floating[Any]], k: int = 5) -> list[tuple[str, float]]:
        """Return the most probable next tokens of a row of logits, best first.

        Parameters
        ----------
        logits : float array (vocab,) or (n, vocab)
            As :meth:`forward` or a session gives them; of several rows the last one counts.
        k : int
            How many.

        Returns
        -------
        list of (str, float)
            Text and probability of each; the lower id first among equals.

        Raises
        ------
        ArgumentError
            Of another shape, or not numbers; k out of range.
        FormatError
            The file has no vocabulary, or one of an unknown kind.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> best, probability = m.top(m.forward("In the beginning God created the"), 1)[0]
        >>> 0 < probability <= 1
        True
        """
        where, vocab = "Model.top", self._config.vocab
        k = integer(k, "k", where, 1, vocab)
        row = np.asarray(logits)
        if (
            row.dtype.kind != "f"
            or row.ndim not in (1, 2)
            or row.size == 0
            or row.shape[-1] != vocab
        ):
            raise ArgumentError(
                f"[{where}] logits: got {row.dtype} {row.shape}, need floats ({vocab},) or "
                f"(n, {vocab}), as forward() returns them"
            )
        row = row[-1].astype(np.float64) if row.ndim == 2 else row.astype(np.float64)
        if np.isnan(row).any():
            raise ArgumentError(f"[{where}] logits: got NaN among them, need numbers")
        weights = np.exp(row - row.max())
        best = np.argsort(-row, kind="stable")[:k]
        total = weights.sum()
        return [(self._token_text(int(i)), float(weights[i] / total)) for i in best]

    def _token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special=False, continuation=True)

    # -- its life ----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(self._engine.closed)

    def clear_cache(self) -> None:
        """Forget finished prompts, so that nothing is reused. Sessions stay."""
        self._engine.clear_cache()

    def close(self) -> None:
        """Free the model and end what still runs. May be called again."""
        self._engine.close()
        self._file.close()

    def __enter__(self: _T) -> _T:
        self._engine.check_usable("Model")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self._config
        experts = f", {c.n_experts} experts of which {c.n_active} work" if c.n_experts else ""
        if self._overrides.changed:
            experts += f", with {self._overrides}"
        state = "closed" if self.closed else f"n_ctx {self.n_ctx}, {self.device}"
        return (
            f"Model({Path(self.path).name!r}, {c.arch}, {c.n_layers} layers, width {c.d_model}"
            f"{experts}; {state})"
        )

    def _repr_html_(self) -> str:
        c = self._config
        rows = [
            ("architecture", c.arch),
            ("name", c.name),
            ("layers", c.n_layers),
            ("width", c.d_model),
            ("heads", c.n_heads),
            ("experts", f"{c.n_experts}, {c.n_active} a token" if c.n_experts else "none"),
            *([("overrides", str(self._overrides))] if self._overrides.changed else []),
            ("vocabulary", f"{c.vocab:,}"),
            ("n_ctx", f"{self.n_ctx:,} (trained: {c.n_ctx_train:,})"),
            ("memory", f"{self.memory['total_bytes'] / 1e6:,.1f} MB"),
            ("device", "closed" if self.closed else self.device),
        ]
        table = html_table([(name, str(value)) for name, value in rows], heads=False)
        return f"<b>{html.escape(Path(self.path).name)}</b>{table}"

    # -- for the methods in model_*.py -------------------------------------------------------------

    def _ids(self, prompt: Any, where: str, name: str = "tokens") -> Tokens:
        """Tokens of one prompt; a text is encoded as one that goes on."""

        def encode(text: str) -> Tokens:
            ids = self.tokenizer.encode_prompt(text)
            self._warn_of_begin(text, ids, where)
            return ids

        return prompt_ids(prompt, encode, self._config.vocab, where, name)

    def _warn_of_begin(self, text: str, ids: Tokens, where: str) -> None:
        """Say once that a caller's own begin-of-text token stands for the tokenizer's."""
        t = self.tokenizer
        if isinstance(text, RenderedChat) or self._said_begin or not t.add_bos or not len(ids):
            return
        begin = "" if t.bos_id is None else t.id_to_token(t.bos_id)
        if begin and text.startswith(begin) and ids[0] == t.bos_id:
            self._said_begin = True
            warnings.warn(
                f"[{where}] the text begins with {begin!r}, which the tokenizer adds by itself; "
                "the model sees it once (said once for each model)",
                stacklevel=5,
            )
