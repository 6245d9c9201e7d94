"""Model: a GGUF file that runs. Text, logits, scores, and everything inside as NumPy arrays."""

from __future__ import annotations

import html
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from moesaic import _core, scoring
from moesaic.capture import Captures, resolve
from moesaic.config import Config, Layer
from moesaic.errors import ArgumentError, FormatError
from moesaic.generation import (
    Checked,
    GenerateOptions,
    Item,
    LogitsProcessor,
    check_options,
    drive,
)
from moesaic.gguf import GGUF
from moesaic.inputs import (
    Prompt,
    PromptList,
    Tokens,
    flag,
    integer,
    is_batch,
    prompt_ids,
    token_ids,
)
from moesaic.progress import Progress, Reporter
from moesaic.progress import check as check_progress
from moesaic.results import Chunk, Generation, Timings
from moesaic.session import Session, encoded_path, forward_many, logits_name, run_all

if TYPE_CHECKING:
    from moesaic.chat import ChatTemplate
    from moesaic.gguf import Metadata, Tensors
    from moesaic.tokenizer import Tokenizer
from moesaic.vocabulary import check_special_ids, tokenizer_or_none

__all__ = [
    "Captures",
    "Chunk",
    "Config",
    "GenerateOptions",
    "Generation",
    "Layer",
    "LogitsProcessor",
    "Model",
    "Session",
    "Timings",
]

_MAX_THREADS = 1024
_BATCH = 256  # requests of one call that are open at once
_T = TypeVar("_T", bound="Model")


class Model:
    """A language model, loaded from a GGUF file and ready to run.

    Every method may be called from any thread; calls that overlap share steps of the engine. The
    GIL is released while it computes, and Ctrl-C ends a call within 100 ms (loading: 1 s).

    Parameters
    ----------
    path : str or os.PathLike
        The file; of a split set any part.
    n_ctx : int
        Most tokens one sequence can have.
    kv_tokens : int or None
        Tokens the KV cache of all sequences holds together, at least ``n_ctx``. None: twice
        ``n_ctx`` where memory allows it. Memory is taken only as it is used.
    threads : int or None
        CPU threads. None: all this process may use.
    backend : str
        ``"auto"`` or ``"cpu"``.
    deterministic : bool
        The same bytes for any number of threads, split of a prompt, and company in a batch. Costs
        some speed.
    progress : None, bool or callable
        None: a bar for loading and long prefills on a terminal or in a notebook. False: none.
        A callable gets ``(stage, done, total)`` with stage ``"load"`` (bytes) or ``"prefill"``
        (tokens).
    kv_type : {"f16", "f32"}
        Element type of the KV cache.

    Raises
    ------
    FormatError
        The file is damaged, or of a kind that Moesaic does not run; the message says where.
    OutOfMemoryError
        It does not fit; the message says what would.
    ArgumentError, IoError
        A bad option; the operating system refused.

    Examples
    --------
    >>> import moesaic
    >>> m = moesaic.Model.demo()
    >>> m.config.arch
    'deepseek2'
    >>> g = m.generate("In the beginning", max_tokens=8, temperature=0)
    >>> len(g.tokens)
    8
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 4096,
        kv_tokens: int | None = None,
        threads: int | None = None,
        backend: str = "auto",
        deterministic: bool = False,
        progress: Progress = None,
        kv_type: str = "f16",
    ) -> None:
        where = "Model"
        encoded = encoded_path(path, where)
        deterministic = flag(deterministic, "deterministic", where)
        integer(n_ctx, "n_ctx", where, 1, 2**30)
        if kv_tokens is not None:
            integer(kv_tokens, "kv_tokens", where, 1, 2**40)
        if threads is not None:
            integer(threads, "threads", where, 1, _MAX_THREADS)
        _one_of(backend, "backend", ["auto", *_core.available_backends()])
        _one_of(kv_type, "kv_type", ["f16", "f32"])
        self._progress = check_progress(progress)
        self._file = GGUF(path)
        with Reporter(progress, "load") as report:
            self._engine: _core.Engine = _core.load_model(
                path=encoded,
                n_ctx=n_ctx,
                kv_tokens=kv_tokens or 0,
                threads=threads or 0,
                backend=backend,
                deterministic=deterministic,
                kv_type=kv_type,
                progress=report.update if report.active else None,
            )
        self._path = os.fspath(path)
        self._config = Config.from_core(_core.engine_config(self._engine))
        self._deterministic = deterministic
        self._capture_names = tuple(self._engine.capture_names)
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        try:
            check_special_ids(self._file.metadata, self._config.vocab, self._path)
        except FormatError:
            self.close()
            raise
        trained = self._config.n_ctx_train
        if 0 < trained < n_ctx:
            warnings.warn(
                f"[Model] n_ctx: got {n_ctx}, but the model was trained for {trained} tokens; what "
                "it says beyond them may make no sense",
                stacklevel=2,
            )

    @classmethod
    def demo(
        cls: type[_T],
        *,
        n_ctx: int = 512,
        kv_tokens: int | None = None,
        threads: int | None = None,
        backend: str = "auto",
        deterministic: bool = False,
        progress: Progress = None,
        kv_type: str = "f16",
    ) -> _T:
        """Load the small mixture-of-experts model that ships in the package.

        Parameters are those of :class:`Model`.

        Examples
        --------
        >>> import moesaic
        >>> moesaic.Model.demo().config.n_experts > 0
        True
        """
        with resources.as_file(resources.files("moesaic") / "data" / "demo.gguf") as path:
            return cls(
                path,
                n_ctx=n_ctx,
                kv_tokens=kv_tokens,
                threads=threads,
                backend=backend,
                deterministic=deterministic,
                progress=progress,
                kv_type=kv_type,
            )

    # -- what it is --------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """Shape and choices of the model; also readable after ``close()``."""
        return self._config

    @property
    def metadata(self) -> Metadata:
        """Every key of the file."""
        return self._file.metadata

    @property
    def tensors(self) -> Tensors:
        """Every tensor of the file by name: shape, type, bytes, and ``dequantize()``."""
        return self._file.tensors

    @property
    def path(self) -> str:
        """The file it was loaded from."""
        return os.fspath(self._path)

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
        """Bytes of weights, of those made at load, of the KV pool, of scratch, and their sum."""
        return dict(self._engine.memory)

    @property
    def capture_names(self) -> tuple[str, ...]:
        """Every name that :meth:`capture` takes, in the order of the forward pass."""
        return self._capture_names

    def stats(self) -> dict[str, int]:
        """What the engine has done: steps, rows of prompts and decoding, rows saved by reuse."""
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
            Ids of the vocabulary.
        """
        ids = token_ids(tokens, self._config.vocab, "Model.detokenize", allow_empty=True)
        return self.tokenizer.decode(ids)

    # -- arrays ------------------------------------------------------------------------------------

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
        """
        self._engine.check_usable("Model.session")
        return Session(self, _core.open_session(self._engine))

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Read a session that :meth:`Session.save` wrote with the same model and cache type.

        Raises
        ------
        FormatError
            The file is damaged, cut, or of another model.
        IoError
            The operating system refused.
        OutOfMemoryError
            The pool of KV pages is full.
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

    # -- generation --------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str | Sequence[int] | npt.NDArray[np.integer[Any]],
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: PromptList, **options: Unpack[GenerateOptions]
    ) -> list[Generation]: ...
    def generate(
        self, prompt: Prompt | PromptList, **options: Unpack[GenerateOptions]
    ) -> Generation | list[Generation]:
        """Continue a prompt, or many at once.

        Parameters
        ----------
        prompt : str, tokens, or a list of either
            Text is tokenised with special tokens added and recognised. A list is one batch: it
            shares steps, item i samples with ``seed + i``, and a list comes back.
        max_tokens : int or None, default 128
            Most tokens to generate; None: until ``n_ctx``. Prompt and generated tokens together
            never pass ``n_ctx``.
        temperature : float, default 0.8
            0 is greedy (the lowest id among equals).
        top_k : int, default 40
            Only the k most probable tokens; 0: off.
        top_p : float, default 0.95
            Only the most probable tokens up to this mass; 1: off.
        min_p : float, default 0.05
            Only tokens at least this fraction as probable as the best; 0: off.
        typical_p : float, default 1
            Locally typical sampling; 1: off.
        repeat_penalty, presence_penalty, frequency_penalty : float, default 1, 0, 0
            Against repetition among the last ``penalty_last_n`` tokens (default 64, -1: all, prompt
            included).
        logit_bias : mapping of int to float, optional
            Added to tokens' logits; -inf bans a token.
        seed : int, optional
            Random when not given; :attr:`Generation.seed` tells it. The draw for a position is a
            function of seed and position alone.
        stop : str or sequence of str
            Strings that end the text before them, wherever tokens are cut.
        stop_tokens : sequence of int
            Further tokens that end it, beside the model's own end-of-generation tokens.
        ignore_eos : bool, default False
            Generate on past the model's end-of-generation tokens.
        logprobs : int, optional
            k: log-probabilities of the tokens, and of the k best at each position.
        logits_processor : callable, optional
            Called before each token with ``(tokens, logits)``: int32 (n,) so far, and the float32
            row (vocab,), writable. It changes the row in place or returns another one. Runs in the
            calling thread; the other options apply to what it leaves.
        capture : str or sequence of str
            Names to capture (see :meth:`capture`), for rows of prompt and generated tokens.
        echo : bool, default False
            Put the prompt's text in front of ``.text``.
        priority : int, default 0
            Higher goes first where requests wait.

        Returns
        -------
        Generation, or list of Generation

        Raises
        ------
        ArgumentError
            A bad option or prompt, or a prompt longer than ``n_ctx``.

        Notes
        -----
        The order of effects is llama.cpp's: bias, penalties, top_k, typical_p, top_p, min_p,
        temperature. An equal beginning of an earlier prompt is not run again where its cache is
        still there. Without ``deterministic=True`` the last bits of logits depend on how rows were
        split and who shared their steps, and once in a while a token does.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> a = m.generate("In the", seed=3, max_tokens=5)
        >>> b, c = m.generate(["In the", "And the"], seed=3, max_tokens=5)
        >>> len(a.tokens), len(b.tokens), b.seed, c.seed
        (5, 5, 3, 4)
        """
        where = "Model.generate"
        checked = self._check(options, where)
        if not is_batch(prompt):
            return self._finish(self._ids(prompt, where, "prompt"), checked, where)
        prompts = [self._ids(item, where, "prompt") for item in prompt]
        self._check_lengths(prompts, where)
        results: list[Generation] = []
        for begin in range(0, len(prompts), _BATCH):
            specs, items = self._requests(prompts[begin : begin + _BATCH], checked, where, begin)
            for _ in drive(self._engine, specs, items, checked.logits_processor, self._progress):
                pass
            results += [item.result() for item in items]
        return results

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[Chunk]:
        """Continue a prompt, yielding pieces of text as they come.

        Parameters
        ----------
        prompt : str or tokens
            One prompt.
        **options
            As for :meth:`generate`.

        Yields
        ------
        Chunk
            The last one has ``finish_reason``. Leaving the loop cancels what is left.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> text = "".join(chunk.text for chunk in m.stream("In the", max_tokens=5, seed=1))
        >>> text == m.generate("In the", max_tokens=5, seed=1).text
        True
        """
        where = "Model.stream"
        checked = self._check(options, where)
        if is_batch(prompt):
            raise ArgumentError(
                f"[{where}] prompt: got a list of prompts, need one; see generate()"
            )
        return self._stream(self._ids(prompt, where, "prompt"), checked, where)

    # -- chat --------------------------------------------------------------------------------------

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[False] = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[True],
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | Iterator[Chunk]:
        """Answer the last message of a conversation, in the form the model was trained on.

        Parameters
        ----------
        messages : sequence of mapping
            ``{"role": "user", "content": "..."}`` and so on.
        tools : sequence of mapping, optional
            Tool declarations in OpenAI's form, for the template.
        stream : bool
            Yield :class:`Chunk` as :meth:`stream` does.
        template_vars : mapping, optional
            Further variables of the template, for example ``{"enable_thinking": False}``.
        **options
            As for :meth:`generate`.

        Returns
        -------
        Generation or iterator of Chunk
            The Generation has ``.message``, ready to be appended to ``messages``.

        Raises
        ------
        FormatError
            The file has no chat template, or a broken one.
        """
        where = "Model.chat"
        checked = self._check(options, where)
        flag(stream, "stream", where)
        text = self.render_chat(messages, tools=tools, template_vars=template_vars)
        ids = self._chat_ids(text, where)
        if stream:
            return self._stream(ids, checked, where)
        return self._finish(ids, checked, where, chat=True)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_vars: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text that :meth:`chat` lets the model continue.

        Parameters
        ----------
        messages, tools, template_vars
            As for :meth:`chat`.
        add_generation_prompt : bool
            End with the beginning of the assistant's turn.
        """
        with self._lock:
            if self._template is None:
                from moesaic.chat import ChatTemplate

                self._template = ChatTemplate.from_metadata(self.metadata)
            template = self._template
        if template_vars is not None and not isinstance(template_vars, Mapping):
            raise ArgumentError(
                f"[Model.chat] template_vars: got {type(template_vars).__name__}, need a mapping"
            )
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **(template_vars or {}),
        )

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
        """
        self._engine.check_usable("Model.score_rolling")
        return scoring.score_rolling(self, texts)

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
            ("vocabulary", f"{c.vocab:,}"),
            ("n_ctx", f"{self.n_ctx:,} (trained: {c.n_ctx_train:,})"),
            ("memory", f"{self.memory['total_bytes'] / 1e6:,.1f} MB"),
            ("device", "closed" if self.closed else self.device),
        ]
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in rows
        )
        return f"<b>{html.escape(Path(self.path).name)}</b><table>{cells}</table>"

    # -- inside ------------------------------------------------------------------------------------

    def _check(self, options: GenerateOptions, where: str) -> Checked:
        self._engine.check_usable(where)
        return check_options(options, self._config.vocab, where)

    def _ids(self, prompt: Any, where: str, name: str = "tokens") -> Tokens:
        def encode(text: str) -> Tokens:
            return self.tokenizer.encode(text, add_special=True, parse_special=True)

        return prompt_ids(prompt, encode, self._config.vocab, where)

    def _check_lengths(self, prompts: list[Tokens], where: str) -> None:
        """Refuse a batch as a whole before any of it runs."""
        for i, prompt in enumerate(prompts):
            if len(prompt) > self.n_ctx:
                raise ArgumentError(
                    f"[{where}] prompt[{i}]: got {len(prompt)} tokens, need at most n_ctx = "
                    f"{self.n_ctx}; load the model with n_ctx={len(prompt)} or more, or shorten it"
                )

    def _chat_ids(self, text: str, where: str) -> Tokens:
        """Tokens of a rendered chat. Many templates write the begin-of-text token themselves."""
        ids = self._ids(text, where, "messages")
        bos = self.tokenizer.bos_id
        return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == bos else ids

    def _requests(
        self, prompts: list[Tokens], options: Checked, where: str, first: int = 0
    ) -> tuple[list[_core.RequestSpec], list[Item]]:
        tokenizer = tokenizer_or_none(self.metadata, lambda: self.tokenizer)
        if tokenizer is None and (options.stop or options.echo):
            raise ArgumentError(
                f"[{where}] stop or echo: this file has no vocabulary, need token ids; use "
                "stop_tokens"
            )
        stop_tokens = list(options.stop_tokens)
        if tokenizer is not None and not options.ignore_eos:
            stop_tokens += sorted(tokenizer.eog_ids)
        names = resolve(options.capture, self._capture_names, where) if options.capture else []
        specs: list[_core.RequestSpec] = []
        items: list[Item] = []
        for i, prompt in enumerate(prompts, start=first):
            room = max(0, self.n_ctx - len(prompt))
            specs.append(
                _core.generation_spec(
                    where=where,
                    tokens=prompt,
                    sampler=options.spec(i),
                    max_tokens=room if options.max_tokens is None else options.max_tokens,
                    stop_tokens=stop_tokens,
                    external=options.logits_processor is not None,
                    capture=names,
                    priority=options.priority,
                )
            )
            decoder = None
            if tokenizer is not None:
                decoder = tokenizer.stream_decoder(continuation=True)
            echo = tokenizer.decode(prompt) if tokenizer is not None and options.echo else ""
            items.append(Item(prompt, options, i, decoder, echo))
        return specs, items

    def _stream(self, ids: Tokens, options: Checked, where: str) -> Iterator[Chunk]:
        self._check_lengths([ids], where)
        specs, items = self._requests([ids], options, where)

        def chunks() -> Iterator[Chunk]:
            if options.echo:
                yield Chunk(items[0].text, (), items[0].timings())
            for _, chunk in drive(
                self._engine, specs, items, options.logits_processor, self._progress
            ):
                yield chunk

        return chunks()

    def _finish(
        self, ids: Tokens, options: Checked, where: str, *, chat: bool = False
    ) -> Generation:
        specs, items = self._requests([ids], options, where)
        for _ in drive(self._engine, specs, items, options.logits_processor, self._progress):
            pass
        return items[0].result(chat=chat)


def _one_of(value: Any, name: str, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        choices = ", ".join(f'"{k}"' for k in dict.fromkeys(known))
        raise ArgumentError(f"[Model] {name}: got {value!r}, need one of {choices}")
    return value
