"""How probable texts are: log-likelihoods summed in the engine, where the logits are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesaic import _core
from moesaic.errors import ArgumentError
from moesaic.inputs import Prompt, Tokens, token_ids
from moesaic.session import run_all

if TYPE_CHECKING:
    from moesaic.model_base import LoadedModel

_WINDOW = 256  # requests submitted at once


def score(
    model: LoadedModel, contexts: Sequence[Prompt], continuations: Sequence[Prompt]
) -> list[tuple[float, bool]]:
    """See :meth:`moesaic.Model.score`."""
    where = "Model.score"
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
    pairs = [
        _split(model, context, continuation, where)
        for context, continuation in zip(contexts, continuations, strict=True)
    ]
    return _run(model, pairs, where)


def score_rolling(model: LoadedModel, texts: Sequence[Prompt]) -> list[float]:
    """See :meth:`moesaic.Model.score_rolling`."""
    where = "Model.score_rolling"
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise ArgumentError(
            f"[{where}] texts: got {type(texts).__name__}, need a list of texts or of tokens"
        )
    pairs: list[tuple[Tokens, Tokens]] = []
    owners: list[int] = []
    for i, text in enumerate(texts):
        for pair in _windows(model, text, where):
            pairs.append(pair)
            owners.append(i)
    sums = [0.0] * len(texts)
    for i, (log_likelihood, _) in zip(owners, _run(model, pairs, where), strict=True):
        sums[i] += log_likelihood
    return sums


def _run(
    model: LoadedModel, pairs: list[tuple[Tokens, Tokens]], where: str
) -> list[tuple[float, bool]]:
    """(log p of the second given the first, whether greedy decoding gives it) for each pair."""
    results: list[tuple[float, bool]] = []
    for begin in range(0, len(pairs), _WINDOW):
        specs = []
        for context, continuation in pairs[begin : begin + _WINDOW]:
            first = len(context) - 1  # its row predicts the first token of the continuation
            specs.append(
                _core.RequestSpec(
                    where=where,
                    tokens=np.concatenate([context, continuation])[:-1],
                    targets=[(first + k, int(t)) for k, t in enumerate(continuation)],
                    reuse=True,
                )
            )
        for outcome in run_all(model, specs):
            targets: list[tuple[float, bool]] = outcome["targets"]
            results.append((sum(p for p, _ in targets), all(greedy for _, greedy in targets)))
    return results


def _split(
    model: LoadedModel, context: Any, continuation: Any, where: str
) -> tuple[Tokens, Tokens]:
    """Tokens of both. Texts are tokenised together, since tokens may reach over the border."""
    vocab = model.config.vocab
    if isinstance(context, str) != isinstance(continuation, str):
        raise ArgumentError(
            f"[{where}] got {type(context).__name__} and {type(continuation).__name__}, need "
            "context and continuation both as text or both as tokens"
        )
    if isinstance(context, str):
        # A blank between the two belongs to the continuation's first word.
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        whole = _encode(model, stripped + continuation)
        head = _encode(model, stripped)
        if len(head) == 0:
            head = _begin(model, where)
            tail = whole
        else:
            tail = whole[len(head) :]
    else:
        head = token_ids(context, vocab, where, allow_empty=True)
        tail = token_ids(continuation, vocab, where, allow_empty=True)
        if len(head) == 0:
            head = _begin(model, where)
    if len(tail) == 0:
        raise ArgumentError(f"[{where}] continuation: got no tokens, need at least one")
    if len(head) + len(tail) - 1 > model.n_ctx:
        raise ArgumentError(
            f"[{where}] context and continuation: got {len(head)} and {len(tail)} tokens, need at "
            f"most n_ctx = {model.n_ctx} together; shorten the context or load with a larger n_ctx"
        )
    return head, tail


def _encode(model: LoadedModel, text: str) -> Tokens:
    """Tokens of a text that goes on: with its beginning marked, not its end."""
    ids = model.tokenize(text)
    t = model.tokenizer
    if t.add_eos and len(ids) and ids[-1] == t.eos_id:
        return ids[:-1]
    return ids


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
