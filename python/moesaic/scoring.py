"""How probable texts are: log-likelihoods summed in the engine, where the logits are.

Texts are cut into context and continuation as lm-evaluation-harness does (``_encode_pair``), and
what many items begin with is run once: the first of them alone, the others when its rows are in the
cache. Not here: the engine's own reuse of equal beginnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moesaic import _core
from moesaic.errors import ArgumentError, MoesaicError
from moesaic.inputs import Prompt, Tokens, token_ids
from moesaic.progress import Reporter

if TYPE_CHECKING:
    from moesaic.model_base import LoadedModel

_WINDOW = 256  # requests submitted at once
_WORTH_WAITING = 8  # tokens of a shared beginning for which an item waits for another
_MOST_WAVES = 4

#: Log-likelihood, and whether greedy decoding gives it.
Score = tuple[float, bool]
Errors = Literal["raise", "return"]
Truncate = Literal["left"] | None


@dataclass
class _Run:
    """Rows that are run once, and who wants which targets of them."""

    tokens: Tokens
    targets: list[tuple[int, int]] = field(default_factory=list)
    owners: list[tuple[int, int, int]] = field(default_factory=list)  # item, begin, end of targets
    wave: int = 0


def iter_score(
    model: LoadedModel,
    contexts: Sequence[Prompt],
    continuations: Sequence[Prompt],
    truncate: Truncate,
    errors: Errors,
    where: str,
) -> Iterator[tuple[int, Score | MoesaicError]]:
    """See :meth:`moesaic.Model.iter_score`; what is wrong is found here, before the iteration."""
    for name, given in (("contexts", contexts), ("continuations", continuations)):
        if isinstance(given, str | bytes) or not isinstance(given, Sequence | np.ndarray):
            raise ArgumentError(
                f"[{where}] {name}: got {type(given).__name__}, need a list of texts or of tokens"
            )
    if len(contexts) != len(continuations):
        raise ArgumentError(
            f"[{where}] got {len(contexts)} contexts and {len(continuations)} continuations, need "
            "as many of one as of the other"
        )
    if truncate not in (None, "left"):
        raise ArgumentError(f"[{where}] truncate: got {truncate!r}, need None or 'left'")
    if errors not in ("raise", "return"):
        raise ArgumentError(f"[{where}] errors: got {errors!r}, need 'raise' or 'return'")
    pairs: list[tuple[Tokens, Tokens] | MoesaicError] = []
    for i, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        try:
            pairs.append(_split(model, context, continuation, truncate, where))
        except ArgumentError as error:
            message = str(error).replace(f"[{where}]", f"[{where}] item {i}:", 1)
            named = type(error)(message)
            if errors == "raise":
                raise named from None
            pairs.append(named)
    return _run(model, pairs, where, "score", len(pairs))


def score(
    model: LoadedModel,
    contexts: Sequence[Prompt],
    continuations: Sequence[Prompt],
    truncate: Truncate,
    errors: Errors,
) -> list[Score | MoesaicError]:
    """See :meth:`moesaic.Model.score`."""
    scores = iter_score(model, contexts, continuations, truncate, errors, "Model.score")
    return [result for _, result in sorted(scores, key=lambda item: item[0])]


def score_rolling(model: LoadedModel, texts: Sequence[Prompt]) -> list[float]:
    """See :meth:`moesaic.Model.score_rolling`."""
    where = "Model.score_rolling"
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise ArgumentError(
            f"[{where}] texts: got {type(texts).__name__}, need a list of texts or of tokens"
        )
    pairs: list[tuple[Tokens, Tokens] | MoesaicError] = []
    owners: list[int] = []
    for i, text in enumerate(texts):
        for pair in _windows(model, text, where):
            pairs.append(pair)
            owners.append(i)
    parts = [0.0] * len(pairs)
    for i, result in _run(model, pairs, where, "score", len(pairs)):
        assert isinstance(result, tuple)
        parts[i] = result[0]
    sums = [0.0] * len(texts)
    for owner, part in zip(owners, parts, strict=True):
        sums[owner] += part
    return sums


def _run(
    model: LoadedModel,
    pairs: list[tuple[Tokens, Tokens] | MoesaicError],
    where: str,
    stage: str,
    total: int,
) -> Iterator[tuple[int, Score | MoesaicError]]:
    """(index, log p of the second given the first, whether greedy) for each pair as they come."""
    done = 0
    with Reporter(model._progress, stage) as report:
        for i, pair in enumerate(pairs):
            if isinstance(pair, MoesaicError) or len(pair[1]) == 0:
                done += 1
                yield i, pair if isinstance(pair, MoesaicError) else (0.0, True)
        report.update(done, total)
        for runs in _batches(_runs(pairs), model.kv_tokens):
            for run, targets in _outcomes(model, runs, where):
                done += len(run.owners)
                report.update(done, total)
                for item, begin, end in run.owners:
                    mine = targets[begin:end]
                    yield item, (sum(p for p, _ in mine), all(greedy for _, greedy in mine))


def _runs(pairs: list[tuple[Tokens, Tokens] | MoesaicError]) -> list[_Run]:
    """What is to be run, in order of its tokens, and in which wave.

    Items that need the same rows (the same context and one token each, or the same pair twice)
    share a run. Of runs with a common beginning the first goes first and the others after it.
    """
    by_tokens: dict[bytes, _Run] = {}
    for i, pair in enumerate(pairs):
        if isinstance(pair, MoesaicError) or len(pair[1]) == 0:
            continue
        context, continuation = pair
        tokens = np.concatenate([context, continuation])[:-1].astype(np.int32)
        run = by_tokens.setdefault(tokens.astype(">i4").tobytes(), _Run(tokens))
        first = len(context) - 1  # its row predicts the first token of the continuation
        begin = len(run.targets)
        run.targets += [(first + k, int(t)) for k, t in enumerate(continuation)]
        run.owners.append((i, begin, len(run.targets)))
    runs = [by_tokens[key] for key in sorted(by_tokens)]  # big-endian: the order of the tokens
    # Open beginnings, shortest first: (how much is shared, wave of the run that runs it first).
    beginnings: list[tuple[int, int]] = []
    before: _Run | None = None
    for run in runs:
        shared = 0 if before is None else _common(before.tokens, run.tokens)
        if before is not None:
            wave = before.wave
            while beginnings and beginnings[-1][0] >= shared:
                wave = min(wave, beginnings.pop()[1])
            if shared >= _WORTH_WAITING:
                beginnings.append((shared, wave))
                run.wave = min(wave + 1, _MOST_WAVES - 1)
        before = run
    return runs


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _batches(runs: list[_Run], kv_tokens: int) -> Iterator[list[_Run]]:
    """Cut runs into what the cache holds together, then into waves: yields what runs at once."""
    window: list[_Run] = []
    tokens = 0
    for run in runs:
        if window and (len(window) == _WINDOW or tokens + len(run.tokens) > kv_tokens // 2):
            yield from _waves(window)
            window, tokens = [], 0
        window.append(run)
        tokens += len(run.tokens)
    yield from _waves(window)


def _waves(window: list[_Run]) -> Iterator[list[_Run]]:
    ordered = sorted(window, key=lambda run: run.wave)
    for _, wave in groupby(ordered, key=lambda run: run.wave):
        yield list(wave)


def _outcomes(
    model: LoadedModel, runs: list[_Run], where: str
) -> Iterator[tuple[_Run, list[Score]]]:
    """Run them together, yielding each with its targets' figures; what is left is cancelled."""
    specs = [
        _core.RequestSpec(where=where, tokens=run.tokens, targets=run.targets, reuse=True)
        for run in runs
    ]
    batch = _core.Batch(model._engine, specs)
    left = len(runs)
    try:
        while left:
            for i in batch.wait():
                if batch.take(i)["finished"]:
                    left -= 1
                    yield runs[i], batch.outcome(i)["targets"]
    finally:
        if left:
            batch.settle()


def _split(
    model: LoadedModel, context: Any, continuation: Any, truncate: Truncate, where: str
) -> tuple[Tokens, Tokens]:
    """Tokens of both, cut to what fits when that is asked for."""
    vocab = model.config.vocab
    if isinstance(context, str) != isinstance(continuation, str):
        raise ArgumentError(
            f"[{where}] got {type(context).__name__} and {type(continuation).__name__}, need "
            "context and continuation both as text or both as tokens"
        )
    if isinstance(context, str):
        head, tail = _split_text(model, context, continuation, where)
    else:
        head = token_ids(context, vocab, where, allow_empty=True)
        tail = token_ids(continuation, vocab, where, allow_empty=True)
    if len(tail) == 0:
        return head, tail
    if len(head) == 0:
        head = _begin(model, where)
    room = model.n_ctx + 1 - len(tail)  # the last token is only predicted
    if len(head) > room and (truncate is None or room < 1):
        advice = "shorten them, or load with a larger n_ctx"
        if truncate is None and room >= 1:
            advice = "truncate='left' cuts the context, or " + advice
        raise ArgumentError(
            f"[{where}] context and continuation: got {len(head)} and {len(tail)} tokens, need at "
            f"most n_ctx + 1 = {model.n_ctx + 1} together; {advice}"
        )
    return head[max(0, len(head) - room) :], tail


def _split_text(
    model: LoadedModel, context: str, continuation: str, where: str
) -> tuple[Tokens, Tokens]:
    """Tokens of texts, which are tokenised together, since tokens may reach over the border.

    Where the whole begins with the context's own tokens it is cut behind them. Where it does not, a
    blank at the end of the context goes to the continuation, whose first word it is part of, and
    the whole is cut behind as many tokens as the context alone has: what lm-evaluation-harness
    does. Where that leaves nothing, because one token holds the end of the context and all of the
    continuation, it is cut at the first token that differs.
    """
    if not continuation:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    encode = model.tokenizer.encode_prompt
    whole = encode(context + continuation)
    head = encode(context)
    if len(head) and context and _common(head, whole) == len(head) < len(whole):
        return head, whole[len(head) :]
    stripped = context.rstrip()
    if not stripped:
        # What begins the text stands in front alone, whether the text writes it or not.
        first = _begin(model, where)
        return first, whole[1:] if whole[:1].tolist() == first.tolist() else whole
    head = encode(stripped)
    if len(whole) > len(head):
        return head, whole[len(head) :]
    same = _common(head, whole)
    return whole[:same], whole[same:]


def _begin(model: LoadedModel, where: str) -> Tokens:
    """A token to begin from when there is no context."""
    t = model.tokenizer
    token = t.bos_id if t.bos_id is not None else t.eos_id
    if token is None:
        raise ArgumentError(
            f"[{where}] context: got an empty one, and the model has no begin-of-text token; give "
            "at least one token"
        )
    return np.array([token], np.int32)


def _windows(model: LoadedModel, text: Any, where: str) -> list[tuple[Tokens, Tokens]]:
    """Cut a text so that every token is predicted once, each window as long as n_ctx allows.

    The first window begins with the begin-of-text token; each later one with as much of what was
    before as fits.
    """
    if isinstance(text, str):
        ids = model.tokenize(text, add_special=False)
    else:
        ids = token_ids(text, model.config.vocab, where, allow_empty=True)
    if len(ids) == 0:
        return []
    n_ctx = model.n_ctx
    whole = np.concatenate([_begin(model, where), ids])
    first = min(len(ids), n_ctx)
    pairs = [(whole[:1], ids[:first])]
    at = first
    while at < len(ids):
        n = min(len(ids) - at, n_ctx)
        # A row predicts the token behind it: a window of n_ctx rows ends before the last target.
        begin = max(0, at + n - n_ctx)
        pairs.append((whole[begin : at + 1], ids[at : at + n]))
        at += n
    return pairs
