"""Text out of a model: tokens to and from text, generation whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack, overload

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic.capture import resolve
from moesaic.errors import ArgumentError
from moesaic.generation import Checked, GenerateOptions, Item, check_options, drive
from moesaic.inputs import Prompt, PromptList, Tokens, is_batch
from moesaic.model_base import LoadedModel
from moesaic.progress import Reporter
from moesaic.results import Chunk, Generation
from moesaic.vocabulary import tokenizer_or_none

_BATCH = 256  # requests of one call that are open at once


class TextMethods(LoadedModel):
    """The methods of :class:`moesaic.Model` that generate."""

    # A str, itself a sequence of str, is one prompt: the first that fits counts.
    @overload
    def generate(  # type: ignore[overload-overlap]
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
            Text is tokenised with special tokens recognised, and BOS in front where the model was
            trained so (never twice). A list is one batch: it shares steps, item i samples with
            ``seed + i``, and a list comes back; an empty one for an empty one.
        max_tokens : int or None, default 128
            Most tokens to generate; None: until ``n_ctx``. Prompt and generated tokens together
            never pass ``n_ctx``.
        temperature : float, default 0.8
            Sampling options that are not given are those that the file recommends
            (``general.sampling.*``), where it does; :attr:`Generation.sampling` tells all.
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
            Against repetition among the last ``penalty_last_n`` tokens.
        penalty_last_n : int, default 64
            How many of the last tokens penalties look at, those of the prompt included; -1: all.
        logit_bias : mapping of int to float, optional
            Added to tokens' logits; -inf bans a token. What the file suppresses
            (``tokenizer.ggml.suppress_tokens``) is always banned.
        seed : int, optional
            Random when not given; :attr:`Generation.seed` tells it. Each token of the vocabulary
            has noise of its own at each position, a function of seed, position and token id alone.
            With ``deterministic=True`` the same call gives the same text, always; without it
            nearly always (see Notes).
        stop : str or sequence of str, optional
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
        OutOfMemoryError
            The pool of KV pages is full of sessions that are held.
        QueueFullError
            Over 1,024 requests are open on this model, from all threads together.

        Notes
        -----
        The order of effects is llama.cpp's: bias, penalties, top_k, typical_p, top_p, min_p,
        temperature. An equal beginning of an earlier prompt is not run again where its cache is
        still there.

        Without ``deterministic=True`` logits depend a little on how rows were split, on what was
        reused, and on the other rows of a step: with quantised models by rounding of 8-bit
        activations (the demo: 0.0003 nats of KL divergence on average). Because noise belongs to
        tokens, a draw then differs about as rarely as the distributions do, some 1 in 100 on the
        demo; but a token that differs once changes the text behind it. For the same bytes from the
        same call load the model with ``deterministic=True``.

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
        if isinstance(prompt, list | tuple) and not prompt:
            return []
        if not is_batch(prompt):
            return self._finish(self._ids(prompt, where, "prompt"), checked, where)
        prompts = [self._ids(item, where, f"prompt[{i}]") for i, item in enumerate(prompt)]
        self._check_lengths(prompts, where)
        results: list[Generation] = []
        with Reporter(self._progress, "generate") as report:

            def finished(n: int) -> None:
                report.update(len(results) + n, len(prompts))

            finished(0)
            for begin in range(0, len(prompts), _BATCH):
                specs, items = self._requests(
                    prompts[begin : begin + _BATCH], checked, where, first=begin
                )
                processor = checked.logits_processor
                for _ in drive(
                    self._engine, specs, items, processor, self._progress, finished=finished
                ):
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

        Raises
        ------
        ArgumentError
            A bad option or prompt, at the call and not only in the loop.

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

    # -- inside ------------------------------------------------------------------------------------

    def _check(self, options: GenerateOptions, where: str) -> Checked:
        self._engine.check_usable(where)
        return check_options(options, self._config.vocab, where, self.metadata)

    def _check_lengths(self, prompts: list[Tokens], where: str) -> None:
        """Refuse a batch as a whole before any of it runs."""
        for i, prompt in enumerate(prompts):
            if len(prompt) > self.n_ctx:
                raise ArgumentError(
                    f"[{where}] prompt[{i}]: got {len(prompt)} tokens, need at most n_ctx = "
                    f"{self.n_ctx}; load the model with n_ctx={len(prompt)} or more, or shorten it"
                )

    def _requests(
        self,
        prompts: list[Tokens],
        options: Checked,
        where: str,
        *,
        first: int = 0,
        streams: bool = False,
        session: _core.Session | None = None,
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
        before = None if session is None else session.tokens
        held = 0 if before is None else len(before)
        specs: list[_core.RequestSpec] = []
        items: list[Item] = []
        for i, prompt in enumerate(prompts, start=first):
            room = max(0, self.n_ctx - held - len(prompt))
            specs.append(
                _core.generation_spec(
                    where=where,
                    tokens=prompt,
                    sampler=options.spec(i),
                    max_tokens=room if options.max_tokens is None else options.max_tokens,
                    stop_tokens=stop_tokens,
                    external=options.logits_processor is not None,
                    at_end=not streams and not options.stop,
                    capture=names,
                    reuse=session is None,
                    priority=options.priority,
                    session=session,
                )
            )
            decoder = None
            if tokenizer is not None:
                decoder = tokenizer.stream_decoder(continuation=True)
            echo = tokenizer.decode(prompt) if tokenizer is not None and options.echo else ""
            items.append(Item(prompt, options, i, decoder, echo, before, self._fingerprint))
        return specs, items

    def _stream(self, ids: Tokens, options: Checked, where: str) -> Iterator[Chunk]:
        self._check_lengths([ids], where)
        specs, items = self._requests([ids], options, where, streams=True)

        def chunks() -> Iterator[Chunk]:
            if options.echo:
                yield Chunk(items[0].text, (), items[0].timings())
            for _, chunk in drive(
                self._engine, specs, items, options.logits_processor, self._progress
            ):
                yield chunk

        return chunks()

    def _finish(
        self, ids: Tokens, options: Checked, where: str, *, begun: str | None = None
    ) -> Generation:
        """Run one prompt; of a chat, ``begun`` is what its message begins with."""
        specs, items = self._requests([ids], options, where)
        for _ in drive(self._engine, specs, items, options.logits_processor, self._progress):
            pass
        return items[0].result(begun=begun)
