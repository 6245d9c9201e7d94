"""generate, stream and chat: what they must give, from forward and plain code."""

from __future__ import annotations

import time

import numpy as np
import pytest

import moesaic
from moesaic.model import Chunk, Generation

# The tiny families were "trained" for fewer tokens than their tests run.
pytestmark = pytest.mark.filterwarnings("ignore:.*trained for")

PROMPT = "It was a bright morning"


def greedy_by_forward(m, tokens, n):
    """The slow way: the whole prompt again for each token."""
    tokens = list(tokens)
    out = []
    for _ in range(n):
        out.append(int(np.argmax(m.forward(tokens)[-1])))
        tokens.append(out[-1])
    return out


def test_greedy_is_argmax_of_forward(exact):
    tokens = exact.tokenize(PROMPT)
    g = exact.generate(PROMPT, max_tokens=12, temperature=0, ignore_eos=True)
    assert isinstance(g, Generation)
    assert g.tokens.dtype == np.int32
    assert g.tokens.tolist() == greedy_by_forward(exact, tokens, 12)
    assert g.prompt_tokens.tolist() == tokens.tolist()
    assert g.text == exact.tokenizer.decode(g.tokens, continuation=True)
    assert g.finish_reason == "length"


def test_families_greedy_tokens_are_the_goldens(family):
    path, about = family
    with moesaic.Model(path, n_ctx=1024, progress=False) as m:
        prompts = [about["prompts"][k] for k in about["greedy"]]
        for g, want in zip(
            m.generate(prompts, max_tokens=16, temperature=0), about["greedy"].values(), strict=True
        ):
            assert g.tokens.tolist() == want
            assert isinstance(g.text, str)


def test_the_same_seed_gives_the_same_tokens(exact):
    a = exact.generate(PROMPT, seed=11, max_tokens=30)
    b = exact.generate(PROMPT, seed=11, max_tokens=30)
    c = exact.generate(PROMPT, seed=12, max_tokens=30)
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.text == b.text
    assert a.tokens.tolist() != c.tokens.tolist()
    free = exact.generate(PROMPT, max_tokens=30)
    again = exact.generate(PROMPT, max_tokens=30, seed=free.seed)
    assert free.tokens.tolist() == again.tokens.tolist()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_tokens(threads, exact):
    with moesaic.Model.demo(progress=False, deterministic=True, threads=threads) as m:
        assert f"{threads} thread" in m.device
        got = m.generate(PROMPT, seed=5, max_tokens=25).tokens
        assert got.tolist() == exact.generate(PROMPT, seed=5, max_tokens=25).tokens.tolist()
        np.testing.assert_array_equal(m.forward(PROMPT), exact.forward(PROMPT))


def test_sixteen_prompts_get_what_each_gets_alone(exact):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, exact.config.vocab, 1 + 17 * i) for i in range(16)]
    together = exact.generate(prompts, max_tokens=12, seed=40, ignore_eos=True)
    exact.clear_cache()
    for i, (prompt, g) in enumerate(zip(prompts, together, strict=True)):
        alone = exact.generate(prompt, max_tokens=12, seed=40 + i, ignore_eos=True)
        assert alone.tokens.tolist() == g.tokens.tolist(), i
        assert g.seed == 40 + i


def test_reuse_changes_nothing_and_saves_rows(exact):
    exact.clear_cache()
    first = exact.generate(PROMPT * 6, max_tokens=20, seed=2)
    assert first.timings.cached_tokens == 0
    again = exact.generate(PROMPT * 6, max_tokens=20, seed=2)
    assert again.timings.cached_tokens == len(again.prompt_tokens) - 1
    assert again.tokens.tolist() == first.tokens.tolist()
    before = exact.stats()["reused_rows"]
    longer = exact.generate(PROMPT * 6 + first.text + " And", max_tokens=5, seed=2)
    saved = longer.timings.cached_tokens
    assert saved > len(first.prompt_tokens)
    assert exact.stats()["reused_rows"] - before == saved
    exact.clear_cache()
    fresh = exact.generate(PROMPT * 6 + first.text + " And", max_tokens=5, seed=2)
    assert fresh.timings.cached_tokens == 0
    assert fresh.tokens.tolist() == longer.tokens.tolist()


def test_families_reuse_and_batch_are_exact(family):
    path, about = family
    long, short = about["prompts"]["long"], about["prompts"]["short"]
    with moesaic.Model(path, n_ctx=1024, deterministic=True, progress=False) as m:
        options = {"max_tokens": 8, "seed": 3, "ignore_eos": True}
        alone = m.generate(long, **options).tokens.tolist()
        m.clear_cache()
        m.generate(long[: len(long) // 2], **options)
        assert m.generate(long, **options).tokens.tolist() == alone
        batch = m.generate([long, short, long[:50]], **options)
        assert batch[0].tokens.tolist() == alone


def test_logprobs(exact):
    tokens = exact.tokenize(PROMPT)
    g = exact.generate(PROMPT, max_tokens=8, seed=1, logprobs=3, logit_bias={100: 5.0})
    whole = np.concatenate([tokens, g.tokens])
    logits = exact.forward(whole)[len(tokens) - 1 : -1].astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(g.tokens))
    assert g.logprobs.dtype == np.float32
    np.testing.assert_allclose(g.logprobs, logp[rows, g.tokens], atol=1e-5)
    assert g.top_ids.shape == g.top_logprobs.shape == (len(g.tokens), 3)
    assert g.top_ids.dtype == np.int32
    np.testing.assert_allclose(g.top_logprobs, np.sort(logp, axis=1)[:, ::-1][:, :3], atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(logp, g.top_ids.astype(int), 1), g.top_logprobs, atol=1e-5
    )
    zero = exact.generate(PROMPT, max_tokens=4, seed=1, logprobs=0)
    assert zero.logprobs.shape == (len(zero.tokens),)
    assert zero.top_ids is None
    none = exact.generate(PROMPT, max_tokens=4, seed=1)
    assert none.logprobs is None


@pytest.mark.sanitizer
def test_stop_strings_may_span_tokens(exact):
    g = exact.generate(PROMPT, max_tokens=60, seed=4)
    middle = len(g.text) // 2
    stop = g.text[middle : middle + 7]
    first = g.text.index(stop)
    cut = exact.generate(PROMPT, max_tokens=60, seed=4, stop=[stop, "never-there"])
    assert cut.text == g.text[:first]
    assert cut.finish_reason == "stop"
    assert cut.stop == stop
    assert cut.tokens.tolist() == g.tokens[: len(cut.tokens)].tolist()
    assert len(cut.tokens) < len(g.tokens)
    assert exact.generate(PROMPT, max_tokens=60, seed=4, stop=stop).text == cut.text
    streamed = list(exact.stream(PROMPT, max_tokens=60, seed=4, stop=stop))
    assert "".join(c.text for c in streamed) == cut.text
    assert streamed[-1].finish_reason == "stop"


def test_stop_tokens_and_eos(exact):
    g = exact.generate(PROMPT, max_tokens=20, seed=4, ignore_eos=True)
    stop = int(g.tokens[7])
    first = g.tokens.tolist().index(stop)
    cut = exact.generate(PROMPT, max_tokens=20, seed=4, ignore_eos=True, stop_tokens=[stop])
    assert cut.tokens.tolist() == g.tokens[:first].tolist()
    assert (cut.finish_reason, cut.stop) == ("stop", stop)
    eos = exact.tokenizer.eos_id
    ended = exact.generate(PROMPT, max_tokens=20, seed=4, logit_bias={eos: 1000.0})
    assert len(ended.tokens) == 0
    assert (ended.text, ended.finish_reason, ended.stop) == ("", "stop", eos)
    on = exact.generate(PROMPT, max_tokens=3, seed=4, logit_bias={eos: 1000.0}, ignore_eos=True)
    assert on.tokens.tolist() == [eos] * 3
    assert on.text == ""


def test_length_limits(exact):
    assert exact.generate(PROMPT, max_tokens=0).finish_reason == "length"
    assert len(exact.generate(PROMPT, max_tokens=0).tokens) == 0
    filled = exact.generate([7] * 505, max_tokens=None, ignore_eos=True)
    assert (len(filled.tokens), filled.finish_reason) == (7, "length")
    full = exact.generate([7] * 512, max_tokens=5)
    assert (len(full.tokens), full.finish_reason) == (0, "length")
    with pytest.raises(moesaic.ArgumentError, match=r"513.*n_ctx = 512"):
        exact.generate([7] * 513)
    with pytest.raises(moesaic.ArgumentError, match=r"prompt\[1\]"):
        exact.generate([[7], [7] * 513])


@pytest.mark.sanitizer
def test_logits_processor_changes_the_row(exact):
    seen = []

    def only_even(tokens, logits):
        assert logits.dtype == np.float32 and logits.flags.writeable
        assert logits.shape == (exact.config.vocab,)
        seen.append(tokens.copy())
        logits[1::2] = -np.inf

    g = exact.generate(PROMPT, max_tokens=10, seed=1, logits_processor=only_even, ignore_eos=True)
    assert len(g.tokens) == 10
    assert (g.tokens % 2 == 0).all()
    assert [len(t) for t in seen] == [len(g.prompt_tokens) + i for i in range(10)]
    assert seen[-1].tolist() == np.concatenate([g.prompt_tokens, g.tokens[:-1]]).tolist()

    nothing = exact.generate(PROMPT, max_tokens=10, seed=1, logits_processor=lambda t, x: None)
    plain = exact.generate(PROMPT, max_tokens=10, seed=1)
    assert nothing.tokens.tolist() == plain.tokens.tolist()
    returned = exact.generate(
        PROMPT,
        max_tokens=3,
        logits_processor=lambda t, x: np.eye(1, x.size, 9).ravel() * 1e4,
        temperature=0,
    )
    assert returned.tokens.tolist() == [9, 9, 9]
    batch = exact.generate(
        [PROMPT, "And", "The"], max_tokens=6, seed=1, logits_processor=only_even, ignore_eos=True
    )
    assert batch[0].tokens.tolist() == g.tokens[:6].tolist()
    assert all((b.tokens % 2 == 0).all() for b in batch)


@pytest.mark.sanitizer
def test_a_processor_that_fails_or_lies(exact):
    def fail(tokens, logits):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        exact.generate([PROMPT, "b"], logits_processor=fail)
    for bad in (np.zeros(3, np.float32), np.zeros((1, exact.config.vocab)), np.zeros(3, int), [1]):
        with pytest.raises(moesaic.ArgumentError):
            exact.generate(PROMPT, logits_processor=lambda t, x, b=bad: b)
    with pytest.raises(moesaic.BackendError, match="nan"):
        exact.generate(PROMPT, logits_processor=lambda t, x: x * np.nan)
    with pytest.raises(moesaic.ArgumentError, match="banned"):
        exact.generate(PROMPT, logits_processor=lambda t, x: x - np.inf)
    assert exact.stats()["active"] == 0
    assert len(exact.generate(PROMPT, max_tokens=2, ignore_eos=True).tokens) == 2


def test_a_processor_may_use_the_model(exact):
    def think(tokens, logits):
        np.testing.assert_allclose(exact.forward(tokens)[-1], logits, rtol=0, atol=0)

    exact.generate(PROMPT, max_tokens=3, logits_processor=think)


def test_captures_of_a_generation(exact):
    names = ["blocks.1.router.experts", "final_norm"]
    g = exact.generate(PROMPT, max_tokens=9, seed=2, capture=names, ignore_eos=True)
    whole = exact.capture(np.concatenate([g.prompt_tokens, g.tokens[:-1]]), names)
    for name in names:
        np.testing.assert_array_equal(g.captures[name], whole[name])
    plain = exact.generate(PROMPT, max_tokens=9, seed=2, ignore_eos=True)
    assert plain.tokens.tolist() == g.tokens.tolist()
    assert plain.captures is None
    two = exact.generate([PROMPT, "And"], max_tokens=4, seed=2, capture="embed", ignore_eos=True)
    assert [x.captures["embed"].shape[0] for x in two] == [len(x.prompt_tokens) + 3 for x in two]


def test_echo(exact):
    plain = exact.generate(PROMPT, max_tokens=5, seed=1)
    echo = exact.generate(PROMPT, max_tokens=5, seed=1, echo=True)
    assert echo.text == PROMPT + plain.text
    assert echo.tokens.tolist() == plain.tokens.tolist()
    assert (
        "".join(c.text for c in exact.stream(PROMPT, max_tokens=5, seed=1, echo=True)) == echo.text
    )


def test_stream_is_generate_in_pieces(exact):
    g = exact.generate(PROMPT, max_tokens=30, seed=9, logprobs=0)
    chunks = list(exact.stream(PROMPT, max_tokens=30, seed=9, logprobs=0))
    assert all(isinstance(c, Chunk) for c in chunks)
    assert "".join(str(c) for c in chunks) == g.text
    assert sum((c.tokens for c in chunks), ()) == tuple(g.tokens.tolist())
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == g.finish_reason
    np.testing.assert_array_equal(
        np.array(sum((c.logprobs for c in chunks), ()), np.float32), g.logprobs
    )
    assert chunks[-1].timings.generated_tokens == 30
    assert len(chunks) > 1  # a reader that comes late gets several tokens at once


@pytest.mark.sanitizer
def test_leaving_a_stream_frees_the_engine(exact):
    for chunk in exact.stream(PROMPT, max_tokens=400, seed=1, ignore_eos=True):
        if chunk.timings.generated_tokens > 3:
            break
    stream = exact.stream(PROMPT, max_tokens=400, seed=1, ignore_eos=True)
    next(stream)
    stream.close()
    never = exact.stream(PROMPT, max_tokens=400)
    del never
    deadline = time.monotonic() + 5
    while exact.stats()["active"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert exact.stats()["active"] == 0


def test_timings(exact):
    exact.clear_cache()
    g = exact.generate(PROMPT, max_tokens=10, seed=1, ignore_eos=True)
    t = g.timings
    assert (t.prompt_tokens, t.cached_tokens, t.generated_tokens) == (len(g.prompt_tokens), 0, 10)
    assert 0 < t.prefill_seconds <= t.time_to_first_token < 60
    assert t.prefill_tokens_per_s == pytest.approx(t.prompt_tokens / t.prefill_seconds)
    assert t.decode_tokens_per_s == pytest.approx(9 / t.decode_seconds)
    assert "tok/s" in repr(g) and "tokens" in g._repr_html_()


def test_penalties_and_bias(exact):
    tokens = exact.tokenize(PROMPT)
    plain = exact.generate(PROMPT, max_tokens=40, temperature=0, ignore_eos=True)
    ban = int(plain.tokens[0])
    other = exact.generate(
        PROMPT, max_tokens=40, temperature=0, ignore_eos=True, logit_bias={ban: float("-inf")}
    )
    assert ban not in other.tokens
    strict = exact.generate(
        PROMPT,
        max_tokens=40,
        temperature=0,
        ignore_eos=True,
        presence_penalty=1000,
        penalty_last_n=-1,
    )
    whole = tokens.tolist() + strict.tokens.tolist()
    assert len(set(strict.tokens.tolist())) == 40
    assert len(set(whole)) == len(set(tokens.tolist())) + 40  # the prompt counts


def test_chat(demo):
    messages = [{"role": "user", "content": "Good morning."}]
    text = demo.render_chat(messages)
    assert "Good morning." in text
    g = demo.chat(messages, max_tokens=8, seed=1)
    assert g.message == {"role": "assistant", "content": g.text}
    ids = demo.tokenizer.encode(text, add_special=True, parse_special=True)
    bos = demo.tokenizer.bos_id
    if len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    assert g.prompt_tokens.tolist() == ids.tolist()
    pieces = list(demo.chat(messages, max_tokens=8, seed=1, stream=True))
    assert "".join(c.text for c in pieces) == g.text
    nxt = demo.chat(
        [*messages, g.message, {"role": "user", "content": "And then?"}], max_tokens=4, seed=1
    )
    common = np.cumprod(nxt.prompt_tokens[: len(g.prompt_tokens)] == g.prompt_tokens).sum()
    assert nxt.timings.cached_tokens >= (common if common >= 16 else 0)
    with pytest.raises(moesaic.ArgumentError):
        demo.chat("hello")
    with pytest.raises(moesaic.ArgumentError):
        demo.chat(messages, stream="yes")


def test_a_file_without_a_vocabulary_generates_tokens(family):
    path, about = family
    if "tokenizer.ggml.model" in moesaic.GGUF(path).metadata:
        return
    with moesaic.Model(path, n_ctx=1024, progress=False) as m:
        g = m.generate(about["prompts"]["short"], max_tokens=3)
        assert (len(g.tokens), g.text) == (3, "")
        with pytest.raises(moesaic.FormatError):
            m.tokenize("a")
        with pytest.raises(moesaic.ArgumentError, match="no vocabulary"):
            m.generate(about["prompts"]["short"], stop="x")
