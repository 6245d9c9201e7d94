"""Generation: options to a sampler's specification, and the loop that turns tokens into text.

The engine runs and samples; this file waits for its tokens, decodes them, looks for stop strings
and calls the logits processor, all in the caller's thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic.capture import Captures
from moesaic.errors import ArgumentError
from moesaic.fingerprint import Fingerprint
from moesaic.inputs import Tokens, flag, integer, real, token_ids
from moesaic.progress import Progress, Reporter
from moesaic.results import Chunk, Generation, Timings
from moesaic.sampling import refuse_unknown, sampling_options
from moesaic.tokenizer import StopMatcher
from moesaic.tokenizer.vocabulary import suppressed_ids

if TYPE_CHECKING:
    from moesaic.tokenizer import StreamDecoder

#: Called with the tokens so far, int32 (n,), and the logits, float32 (vocab,), which it may change
#: in place; or it returns other ones.
LogitsProcessor = Callable[[Tokens, npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]] | None]


class GenerateOptions(TypedDict, total=False):
    """The keyword options of ``generate``, ``stream`` and ``chat``; ``Model.generate`` explains."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_tokens: Sequence[int] | None
    ignore_eos: bool
    logprobs: int | None
    logits_processor: LogitsProcessor | None
    capture: str | Sequence[str] | None
    echo: bool
    priority: int


@dataclass(frozen=True)
class Checked:
    """Options after all checks."""

    sampler: dict[str, Any]
    sampling: Mapping[str, float]
    sampling_from_file: tuple[str, ...]
    max_tokens: int | None
    seed: int
    stop: tuple[str, ...]
    stop_tokens: tuple[int, ...]
    ignore_eos: bool
    logprobs: int | None
    logits_processor: LogitsProcessor | None
    capture: str | Sequence[str]
    echo: bool
    priority: int

    def spec(self, index: int) -> _core.SamplerSpec:
        """The sampler of item ``index`` of a batch, which samples with seed + index."""
        spec = _core.SamplerSpec()
        for name, value in self.sampler.items():
            setattr(spec, name, value)
        spec.seed = (self.seed + index) % 2**64
        return spec


def check_options(
    options: Mapping[str, Any], vocab: int, where: str, metadata: Mapping[str, Any] | None = None
) -> Checked:
    """Check every option, with what was given, what is needed.

    Sampling options that are not given come from the file's ``metadata``, then from here.
    """
    refuse_unknown(options, GenerateOptions.__optional_keys__, where)
    o = options
    logprobs = o.get("logprobs")
    if logprobs is not None:
        logprobs = integer(logprobs, "logprobs", where, 0, vocab)
    sampling, from_file = sampling_options(o, metadata or {}, where)
    bias = dict(_logit_bias(o.get("logit_bias"), vocab, where))
    bias.update(dict.fromkeys(sorted(suppressed_ids(metadata or {}, vocab)), float("-inf")))
    sampler: dict[str, Any] = {
        **sampling,
        "logit_bias": list(bias.items()),
        "n_logprobs": -1 if logprobs is None else logprobs,
    }
    max_tokens = o.get("max_tokens", 128)
    seed = o.get("seed")
    processor = o.get("logits_processor")
    if processor is not None and not callable(processor):
        raise ArgumentError(
            f"[{where}] logits_processor: got {type(processor).__name__}, need a callable "
            "f(tokens, logits)"
        )
    stop_tokens = o.get("stop_tokens")
    capture = o.get("capture")
    return Checked(
        sampler=sampler,
        sampling=dict(sampling),
        sampling_from_file=from_file,
        max_tokens=None
        if max_tokens is None
        else integer(max_tokens, "max_tokens", where, 0, 2**62),
        seed=secrets.randbits(48) if seed is None else integer(seed, "seed", where, 0, 2**64 - 1),
        stop=_stop_strings(o.get("stop"), where),
        stop_tokens=()
        if stop_tokens is None
        else tuple(
            token_ids(stop_tokens, vocab, f"{where}(stop_tokens)", allow_empty=True).tolist()
        ),
        ignore_eos=flag(o.get("ignore_eos", False), "ignore_eos", where),
        logprobs=logprobs,
        logits_processor=processor,
        capture=() if capture is None else capture,
        echo=flag(o.get("echo", False), "echo", where),
        priority=integer(o.get("priority", 0), "priority", where, -1000, 1000),
    )


def _logit_bias(bias: Any, vocab: int, where: str) -> list[tuple[int, float]]:
    if bias is None:
        return []
    if not isinstance(bias, Mapping):
        raise ArgumentError(
            f"[{where}] logit_bias: got {type(bias).__name__}, need a mapping of token id to float"
        )
    return [
        (
            integer(token, "logit_bias token", where, 0, vocab - 1),
            real(value, f"logit_bias[{token}]", where, float("-inf"), 3e38),
        )
        for token, value in bias.items()
    ]


def _stop_strings(stop: Any, where: str) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple | set | frozenset):
        raise ArgumentError(
            f"[{where}] stop: got {type(stop).__name__}, need a string or a list of strings; token "
            "ids go to stop_tokens"
        )
    for text in strings:
        if not isinstance(text, str):
            raise ArgumentError(
                f"[{where}] stop: got {type(text).__name__} among them, need strings; token ids go "
                "to stop_tokens"
            )
        if not text:
            raise ArgumentError(f"[{where}] stop: got an empty string, need at least one character")
    return tuple(strings)


class Item:
    """One generation while it runs: its tokens and its text so far."""

    def __init__(
        self,
        prompt: Tokens,
        options: Checked,
        index: int,
        decoder: StreamDecoder | None,
        echo_text: str,
        before: Tokens | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        self.prompt = prompt
        self._before = prompt if before is None else np.concatenate([before, prompt])
        self._fingerprint = fingerprint
        self.seed = (options.seed + index) % 2**64
        self.tokens: list[int] = []
        self._pieces: list[str] = []
        self._echo_text = echo_text
        self.outcome: dict[str, Any] | None = None
        self._options = options
        self._decoder = decoder
        self._matcher = StopMatcher(options.stop)
        self._logprobs: list[float] = []
        self._top: list[tuple[list[int], list[float]]] = []
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last = self._began

    @property
    def context(self) -> Tokens:
        """All tokens of the sequence so far, int32 (n,): a session's first."""
        return np.concatenate([self._before, np.array(self.tokens, np.int32)])

    @property
    def text(self) -> str:
        """All text so far, the prompt's in front when it is echoed."""
        return self._echo_text + "".join(self._pieces)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._matcher.matched is not None

    def feed(self, sampled: Sequence[tuple[int, float, list[int], list[float]]]) -> Chunk | None:
        """Take new tokens; return what can be shown of them. Nothing comes after a stop string."""
        before = len(self.tokens)
        pieces: list[str] = []
        for token, logprob, top_ids, top_logprobs in sampled:
            if self.stopped:
                break
            self.tokens.append(token)
            if self._options.logprobs is not None:
                self._logprobs.append(logprob)
                self._top.append((top_ids, top_logprobs))
            if self._decoder is not None:
                pieces.append(self._matcher.feed(self._decoder.feed(token)))
        if len(self.tokens) == before:
            return None
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        return self._chunk("".join(pieces), before)

    def end(self, outcome: dict[str, Any]) -> Chunk:
        """Take the engine's last word; return the text that was held back."""
        self.outcome = outcome
        text = ""
        if self._decoder is not None and not self.stopped:
            text = self._matcher.feed(self._decoder.flush()) + self._matcher.flush()
        return self._chunk(text, len(self.tokens))

    def _chunk(self, text: str, before: int) -> Chunk:
        if text:
            self._pieces.append(text)
        return Chunk(
            text=text,
            tokens=tuple(self.tokens[before:]),
            timings=self.timings(),
            finish_reason=None if self.outcome is None else self.finish_reason,
            logprobs=tuple(self._logprobs[before:]),
        )

    @property
    def finish_reason(self) -> str:
        """``"stop"`` or ``"length"``."""
        if self.stopped:
            return "stop"
        assert self.outcome is not None
        return str(self.outcome["finish"])

    def timings(self) -> Timings:
        """The engine's figures at the end, this thread's own before it."""
        n = len(self.tokens)
        o = self.outcome
        if o is None or o["prompt_done"] is None:
            first = (self._first or self._last) - self._began
            return Timings._measured(
                prompt_tokens=len(self.prompt),
                cached_tokens=0,
                generated_tokens=n,
                time_to_first_token=first if n else 0.0,
                prefill_seconds=first,
                decode_seconds=max(0.0, self._last - self._began - first),
                decode_steps=max(0, n - 1),
            )
        return Timings._measured(
            prompt_tokens=len(self.prompt),
            cached_tokens=o["n_reused"],
            generated_tokens=n,
            time_to_first_token=o["prompt_done"] if n else 0.0,
            prefill_seconds=o["prompt_done"] - o["admitted"],
            decode_seconds=o["ended"] - o["prompt_done"],
            decode_steps=max(0, n - 1 + (o["finish"] == "stop")),
        )

    def result(self, *, begun: str | None = None) -> Generation:
        """The finished generation; of a chat with its message, which begins with ``begun``."""
        assert self.outcome is not None
        o = self.outcome
        stop: str | int | None = self._matcher.matched
        if stop is None and o["finish"] == "stop":
            stop = int(o["stop_token"])
        k = self._options.logprobs
        top = k is not None and k > 0
        captures = None
        if self._options.capture:
            captures = Captures(o["captures"], None, self._fingerprint)._first_rows(
                len(self.prompt) + max(0, len(self.tokens) - 1)
            )
        shape = (len(self.tokens), k or 0)
        return Generation(
            text=self.text,
            tokens=np.array(self.tokens, np.int32),
            finish_reason=self.finish_reason,
            timings=self.timings(),
            prompt_tokens=self.prompt,
            seed=self.seed,
            sampling=self._options.sampling,
            sampling_from_file=self._options.sampling_from_file,
            stop=stop,
            logprobs=None if k is None else np.array(self._logprobs, np.float32),
            top_ids=np.array([i for i, _ in self._top], np.int32).reshape(shape) if top else None,
            top_logprobs=np.array([p for _, p in self._top], np.float32).reshape(shape)
            if top
            else None,
            captures=captures,
            message=None
            if begun is None
            else {"role": "assistant", "content": begun + "".join(self._pieces)},
            _fingerprint=self._fingerprint,
        )


def drive(
    engine: _core.Engine,
    specs: list[_core.RequestSpec],
    items: list[Item],
    processor: LogitsProcessor | None,
    progress: Progress,
    *,
    finished: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Chunk]]:
    """Run requests to their ends, yielding (item, chunk) as they come.

    ``finished`` is told how many items have ended, and takes the place of the report of prompts.

    However it ends (a closed generator, an exception of the processor, Ctrl-C), the requests are
    cancelled and the engine has let go of them before this returns.
    """
    yield from follow(_core.Batch(engine, specs), items, processor, progress, finished=finished)


def follow(
    batch: _core.Batch,
    items: list[Item],
    processor: LogitsProcessor | None,
    progress: Progress,
    *,
    finished: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Chunk]]:
    """Do what :func:`drive` does with requests that were submitted already.

    Those that belong to a session keep what was handed out when the generator is closed, and are
    taken back when an exception ends it.
    """
    left = len(items)
    done = [0] * len(items)
    totals = [len(item.prompt) for item in items]
    try:
        with Reporter(progress if finished is None else False, "prefill") as report:
            while left:
                for i in batch.wait():
                    news = batch.take(i)
                    item = items[i]
                    if report.active and done[i] != news["prompt_rows_done"]:
                        done[i] = news["prompt_rows_done"]
                        report.update(sum(done), sum(totals))
                    was_stopped = item.stopped
                    chunk = item.feed(news["tokens"])
                    if chunk is not None:
                        yield i, chunk
                    if item.stopped and not was_stopped and not news["finished"]:
                        batch.stop(i, len(item.tokens))
                    elif news["row"] is not None:
                        batch.choose(i, _processed(processor, item, news["row"]))
                    if news["finished"]:
                        left -= 1
                        if finished is not None:
                            finished(len(items) - left)
                        yield i, item.end(batch.outcome(i))
    except GeneratorExit:
        if left and any(item.tokens for item in items):
            batch.finish([len(item.tokens) for item in items])
            left = 0
        raise
    finally:
        if left:
            batch.settle()


def _processed(
    processor: LogitsProcessor | None, item: Item, row: npt.NDArray[np.float32]
) -> npt.NDArray[np.floating[Any]]:
    if processor is None:
        return row
    changed = processor(item.context, row)
    return row if changed is None else changed
