"""score, iter_score and score_rolling against log-softmax of forward; what is run for them."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import small_model

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
        (["a"], [[1]]),
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


# -- pairs as harnesses send them -----------------------------------------------------------------


@pytest.fixture(scope="module")
def borders(tmp_path_factory):
    """A model with the tokens "th" and "the", and control tokens, which adds BOS and EOS."""
    path = tmp_path_factory.mktemp("borders") / "m.gguf"
    small_model(
        path,
        extra=["th", "the", "<|turn|>"],
        merges=["t h", "th e"],
        keys={"tokenizer.ggml.add_eos_token": True},
    )
    with moesaic.Model(path, n_ctx=64, threads=1, progress=False, deterministic=True) as m:
        yield m


def test_a_token_across_the_border(borders):
    """The context's own tokens, then what follows as many of the whole."""
    m = borders
    th, the = m.tokenizer.token_to_id("th"), m.tokenizer.token_to_id("the")
    say = m.tokenizer.encode_prompt("say ").tolist()
    scores = m.score(["say ", "say th", "say th", "say th"], ["x", "e", "ere", "at"])
    assert scores[0][0] == pytest.approx(by_forward(m, say, [ord("x")])[0], abs=1e-6)
    assert scores[1][0] == pytest.approx(by_forward(m, say, [the])[0], abs=1e-6)
    assert scores[2][0] == pytest.approx(by_forward(m, [*say, th], [114, 101])[0], abs=1e-6)
    assert scores[3][0] == pytest.approx(by_forward(m, [*say, th], [97, 116])[0], abs=1e-6)


def test_control_tokens_are_spelled_as_generate_does(borders):
    m = borders
    context, rest = "<|turn|>user hi<|turn|>bot ", "yes"
    whole = m.tokenizer.encode_prompt(context + rest)
    assert len(m.forward(context + rest)) == len(whole)
    want = by_forward(m, whole[:-3], whole[-3:])
    assert m.score([context], [rest])[0][0] == pytest.approx(want[0], abs=1e-6)


def test_empty_continuations_and_long_contexts(borders):
    m = borders
    assert m.score(["a", "a ", [1]], ["", "", []]) == [(0.0, True)] * 3
    long = [97] * 100
    with pytest.raises(moesaic.ArgumentError, match=r"item 1: .*truncate='left'"):
        m.score([[97], long], [[98], [98]])
    got = m.score([long], [[98, 99]], truncate="left")[0]
    assert got[0] == pytest.approx(by_forward(m, long[:63], [98, 99])[0], abs=1e-6)
    with pytest.raises(moesaic.ArgumentError, match="got 1 and 65 tokens"):
        m.score([[97]], [[98] * 65], truncate="left")
    assert len(m.score([[97]], [[98] * 64])) == 1  # the last one is only predicted


def test_one_bad_pair_is_named_or_returned(borders):
    m = borders
    contexts, tails = ["a", [97], "b"], ["x", [10**9], "y"]
    with pytest.raises(moesaic.ArgumentError, match="item 1"):
        m.score(contexts, tails)
    first, bad, last = m.score(contexts, tails, errors="return")
    assert isinstance(bad, moesaic.ArgumentError) and "item 1" in str(bad)
    assert [first, last] == m.score(["a", "b"], ["x", "y"])
    for options in ({"truncate": "right"}, {"errors": "ignore"}):
        with pytest.raises(moesaic.ArgumentError, match="need"):
            m.score(["a"], ["x"], **options)


def rows_of(m, work):
    """Rows of prompts that were run for ``work``, give or take a few, and its result."""
    m.clear_cache()
    m.forward([3])  # a step is counted at the latest when the next one begins
    before = m.stats()["prompt_rows"]
    result = work()
    m.forward([3])
    return m.stats()["prompt_rows"] - before, result


def test_short_contexts_are_run_once(exact):
    """Below a page of the cache the engine shares nothing between requests of one moment."""
    contexts = [[100 * n + k for k in range(20)] for n in (1, 2, 3)]
    items = [(c, [7 + i, 9, 11]) for c in contexts for i in range(4)]
    heads, tails = [c for c, _ in items], [t for _, t in items]
    rows, scores = rows_of(exact, lambda: exact.score(heads, tails))
    assert rows <= 3 * 20 + 12 * 5  # each by itself: 12 * 22
    exact.clear_cache()
    for (context, tail), got in zip(items, scores, strict=True):
        assert got[0] == pytest.approx(by_forward(exact, context, tail)[0], abs=1e-6)


def test_equal_rows_are_run_once(exact):
    context = exact.tokenize("And he said unto them")
    tails = [[i % 4 + 5] for i in range(8)]
    rows, scores = rows_of(exact, lambda: exact.score([context] * 8, tails))
    assert rows <= 2 * len(context)  # each by itself: 8 times
    assert scores[:4] == scores[4:] and len(set(scores)) == 4


def test_what_was_scored_is_kept(exact):
    contexts = [[i + 3, i + 4] for i in range(600)]
    kept = {}
    for i, result in exact.iter_score(contexts, [[5]] * 600):
        kept[i] = result
        if len(kept) == 300:
            break
    assert len(kept) == 300
    assert all(exact.score([contexts[i]], [[5]])[0] == kept[i] for i in list(kept)[::100])
    with pytest.raises(moesaic.ArgumentError):
        exact.iter_score(["a"], [])  # at the call


def test_one_bar_in_items():
    seen = []
    with moesaic.Model.demo(progress=lambda *news: seen.append(news)) as m:
        seen.clear()
        m.score([[i + 3, 4] for i in range(300)], [[5]] * 300)
        assert {stage for stage, _, _ in seen} == {"score"}
        assert {total for _, _, total in seen} == {300}
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert seen[-1] == ("score", 300, 300)
        seen.clear()
        m.generate([[3, 4]] * 5, max_tokens=3, ignore_eos=True)
        assert {stage for stage, _, _ in seen} == {"generate"} and seen[-1] == ("generate", 5, 5)
