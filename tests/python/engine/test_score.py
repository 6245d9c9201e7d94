"""score and score_rolling against log-softmax of forward."""

from __future__ import annotations

import numpy as np
import pytest

import moesaic

# The tiny families were "trained" for fewer tokens than their tests run.
pytestmark = pytest.mark.filterwarnings("ignore:.*trained for")


def log_softmax(logits):
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def by_forward(m, head, tail):
    whole = np.concatenate([head, tail]).astype(int)
    logp = log_softmax(m.forward(whole[:-1]))
    rows = np.arange(len(head) - 1, len(whole) - 1)
    picked = logp[rows, whole[len(head) :]]
    return picked.sum(), bool((logp[rows].argmax(axis=1) == whole[len(head) :]).all())


@pytest.mark.sanitizer
def test_score_is_summed_log_softmax(exact):
    contexts = ["In the", "It was a dark and", "She said that she had never"] * 3
    tails = [" beginning", " stormy night, when nobody", " been so happy"] * 3
    scores = exact.score(contexts, tails)
    assert len(scores) == 9
    for context, tail, (logp, greedy) in zip(contexts, tails, scores, strict=True):
        whole = exact.tokenize(context + tail)
        head = exact.tokenize(context)
        want = by_forward(exact, head, whole[len(head) :])
        assert logp == pytest.approx(want[0], abs=1e-6)
        assert greedy is want[1]
    assert exact.score([], []) == []


def test_families_score(family):
    path, about = family
    long = (about["prompts"]["long"] * 20)[:400]
    with moesaic.Model(path, n_ctx=1024, deterministic=True, progress=False) as m:
        heads = [long[:40]] * 4 + [long[:1]]
        tails = [long[40:60], long[40:41], [1, 2, 3], long[41:300], long[1:30]]
        for head, tail, got in zip(heads, tails, m.score(heads, tails), strict=True):
            want = by_forward(m, head, tail)
            assert got[0] == pytest.approx(want[0], abs=1e-6)
            assert got[1] is want[1]


def test_greedy_continuations_are_recognised(exact):
    prompt = exact.tokenize("And so")
    g = exact.generate(prompt, max_tokens=6, temperature=0, ignore_eos=True)
    right, wrong = exact.score([prompt] * 2, [g.tokens, g.tokens[::-1]])
    assert right[1] is True
    assert wrong[1] is False
    assert right[0] > wrong[0]


def test_a_shared_context_is_run_once(exact):
    exact.clear_cache()
    context = exact.tokenize("It was a bright morning. " * 12)
    before = exact.stats()
    scores = exact.score([context] * 16, [[i + 5] for i in range(16)])
    rows = exact.stats()["prompt_rows"] - before["prompt_rows"]
    assert rows < 2 * len(context)
    exact.clear_cache()
    alone = [exact.score([context], [[i + 5]])[0] for i in range(0, 16, 5)]
    assert alone == scores[::5]


def test_a_blank_at_the_border_and_an_empty_context(exact):
    assert exact.score(["In the "], ["beginning"]) == exact.score(["In the"], [" beginning"])
    bos = exact.tokenizer.bos_id if exact.tokenizer.bos_id is not None else exact.tokenizer.eos_id
    text = exact.tokenize("beginning", add_special=False)
    assert exact.score([""], ["beginning"])[0][0] == pytest.approx(
        by_forward(exact, [bos], text)[0], abs=1e-6
    )


def test_rolling_predicts_every_token_once(exact):
    bos = exact.tokenizer.bos_id if exact.tokenizer.bos_id is not None else exact.tokenizer.eos_id
    short = exact.tokenize("He never spoke of it again.", add_special=False)
    got = exact.score_rolling(["He never spoke of it again.", "", short])
    assert got[0] == pytest.approx(by_forward(exact, [bos], short)[0], abs=1e-6)
    assert got[1] == 0.0
    assert got[2] == got[0]
    rng = np.random.default_rng(0)
    long = rng.integers(2, exact.config.vocab, 1200)
    whole = np.concatenate([[bos], long])
    want = by_forward(exact, whole[:1], long[:512])[0]
    want += by_forward(exact, whole[512:513], long[512:1024])[0]
    want += by_forward(exact, whole[1200 - 512 : 1025], long[1024:])[0]
    assert exact.score_rolling([long])[0] == pytest.approx(want, abs=1e-5)


def test_bad_arguments(exact):
    for contexts, tails in [
        ("a", ["b"]),
        (["a"], "b"),
        (["a"], []),
        (["a"], [""]),
        (["a"], [[1]]),
        ([[1]], [[]]),
        ([[1.5]], [[1]]),
        ([[1]], [[10**9]]),
        ([[1] * 300], [[2] * 300]),
        (3, 4),
    ]:
        with pytest.raises(moesaic.ArgumentError):
            exact.score(contexts, tails)
    for texts in ("a", 3, [3], [[1.5]]):
        with pytest.raises(moesaic.ArgumentError):
            exact.score_rolling(texts)
