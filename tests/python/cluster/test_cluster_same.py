"""A model on workers says what it says on one machine: the same bytes under deterministic=True."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import moesaic

FAMILIES = Path(__file__).parents[2] / "data" / "families"
NAMES = sorted(p.stem for p in FAMILIES.glob("*.gguf") if p.with_suffix(".json").exists())
PROMPT = "It is a truth universally acknowledged, that a single man"


@pytest.fixture(scope="module")
def clusters():
    with (
        moesaic.Cluster.local(1, memory=2 * 10**9) as one,
        moesaic.Cluster.local(2, memory=2 * 10**9) as two,
        moesaic.Cluster.local(3, memory=2 * 10**9) as three,
    ):
        yield {1: one, 2: two, 3: three}


@pytest.mark.parametrize("name", NAMES)
def test_every_family_on_one_two_and_three_workers(clusters, name):
    path = FAMILIES / f"{name}.gguf"
    prompts = list(json.loads(path.with_suffix(".json").read_text())["prompts"].values())
    n_ctx = max(map(len, prompts)) + 16
    options = {"n_ctx": n_ctx, "deterministic": True, "progress": False}
    with moesaic.Model(path, threads=1, **options) as m:
        n_layers, vocab = m.config.n_layers, m.config.vocab
        want = [m.forward(p) for p in prompts]
        tap = f"blocks.{n_layers - 1}.resid_post"
        inside = m.capture(prompts[0], [tap, "blocks.0.resid_post"])
        drawn = m.generate(prompts, max_tokens=8, seed=3, ignore_eos=True, logprobs=2)
    for n, cluster in clusters.items():
        if n > n_layers:
            continue
        with cluster.load(path, **options) as m:
            for p, logits in zip(prompts, want, strict=True):
                got = m.forward(p)
                assert got.shape == (len(p), vocab) and got.dtype == np.float32
                assert got.tobytes() == logits.tobytes(), f"{n} workers"
            again = m.capture(prompts[0], [tap, "blocks.0.resid_post"])
            assert all(again[k].tobytes() == inside[k].tobytes() for k in inside)
            drawn_again = m.generate(prompts, max_tokens=8, seed=3, ignore_eos=True, logprobs=2)
            for a, b in zip(drawn, drawn_again, strict=True):
                assert a.tokens.tolist() == b.tokens.tolist()
                assert a.logprobs.tobytes() == b.logprobs.tobytes()
                assert a.top_ids.tobytes() == b.top_ids.tobytes()


def test_text_and_figures(sharded, exact):
    for options in (
        {"temperature": 0},
        {"seed": 7},
        {"seed": 7, "top_k": 3, "repeat_penalty": 1.2},
    ):
        one = exact.generate(PROMPT, max_tokens=40, **options)
        two = sharded.generate(PROMPT, max_tokens=40, **options)
        assert one.text == two.text and one.finish_reason == two.finish_reason
    assert two.timings.generated_tokens == len(two.tokens)


def test_streams_and_batches(sharded, exact):
    prompts = ["It was", "She had been", "Mr. Darcy", "I am"] * 3
    one = exact.generate(prompts, max_tokens=20, seed=1)
    two = sharded.generate(prompts, max_tokens=20, seed=1)
    assert [g.text for g in one] == [g.text for g in two]
    pieces = "".join(c.text for c in sharded.stream("It was", max_tokens=20, seed=1))
    assert pieces == one[0].text


def test_logits_processor(sharded, exact):
    def only_even(tokens, logits):
        logits[1::2] = -np.inf
        return logits

    options = {"max_tokens": 12, "seed": 5, "logits_processor": only_even}
    one, two = exact.generate(PROMPT, **options), sharded.generate(PROMPT, **options)
    assert one.tokens.tolist() == two.tokens.tolist()
    assert not any(t % 2 for t in two.tokens)


def test_scores(sharded, exact):
    contexts, ends = ["It is a truth", "She was", "He had"], [" universally", " happy", " no idea"]
    assert sharded.score(contexts, ends) == exact.score(contexts, ends)
    assert sharded.score_rolling(contexts) == exact.score_rolling(contexts)


def test_captures_of_every_name(sharded, exact):
    assert sharded.capture_names == exact.capture_names
    one, two = exact.capture(PROMPT, "*"), sharded.capture(PROMPT, "*")
    assert list(one) == list(two)
    for name in one:
        assert one[name].dtype == two[name].dtype and one[name].shape == two[name].shape
        assert one[name].tobytes() == two[name].tobytes(), name
    assert one.logits.tobytes() == two.logits.tobytes()


def test_a_long_prompt_in_micro_batches(sharded, exact):
    tokens = exact.tokenize(PROMPT * 30)[:500]
    assert len(tokens) == 500
    assert sharded.forward(tokens).tobytes() == exact.forward(tokens).tobytes()


def test_sessions_fork_and_truncate(sharded, exact):
    def walk(m):
        out = []
        with m.session() as s:
            out.append(s.forward(m.tokenize("It is a truth universally")))
            with s.fork() as other:
                out.append(other.forward(m.tokenize(" acknowledged", add_special=False)))
                out.append(other.tokens)
            s.truncate(3)
            out.append(s.forward([17, 18, 19], logits="all"))
            out.append(s.tokens)
        return [x.tobytes() for x in out]

    assert walk(sharded) == walk(exact)


def test_a_session_saved_on_three_workers_goes_on_anywhere(clusters, exact, demo_path, tmp_path):
    options = {"n_ctx": 512, "deterministic": True, "progress": False}
    tokens, more = exact.tokenize(PROMPT), exact.tokenize(" in possession", add_special=False)
    with exact.session() as s:
        s.forward(tokens)
        want = s.forward(more).tobytes()
    with clusters[3].load(demo_path, **options) as three, three.session() as s:
        s.forward(tokens)
        s.save(tmp_path / "three.session")
        assert s.forward(more).tobytes() == want
    with exact.load_session(tmp_path / "three.session") as s:
        assert s.forward(more).tobytes() == want
    with (
        clusters[2].load(demo_path, **options) as two,
        two.load_session(tmp_path / "three.session") as s,
    ):
        assert s.tokens.tolist() == tokens.tolist()
        s.save(tmp_path / "two.session")
        assert s.forward(more).tobytes() == want
    assert (tmp_path / "two.session").read_bytes() == (tmp_path / "three.session").read_bytes()


def test_half_floats_on_the_wire_are_near_and_halve_the_traffic(clusters, exact, demo_path):
    tokens = exact.tokenize(PROMPT * 10)
    want = exact.forward(tokens)
    sent = {}
    for wire in ("f32", "f16"):
        before = clusters[2].nodes[0].bytes_sent
        with clusters[2].load(demo_path, n_ctx=512, deterministic=True, wire=wire) as m:
            got = m.forward(tokens)
        sent[wire] = clusters[2].nodes[0].bytes_sent - before
        # A hidden row rounded to 11 bits moves a logit by some 2^-11 of it, unless an expert flips.
        worst = np.abs(got - want).max(axis=1)
        assert worst.max() == 0 if wire == "f32" else 0 < np.median(worst) < 0.1
    assert 0.45 < sent["f16"] / sent["f32"] < 0.6


def test_the_default_mode_says_what_it_says_on_one_machine(clusters, demo_path):
    with (
        moesaic.Model.demo(progress=False, deterministic=False) as alone,
        clusters[2].load(demo_path, n_ctx=512) as m,
    ):
        tokens = alone.tokenize(PROMPT)
        assert not m.deterministic
        assert m.forward(tokens).tobytes() == alone.forward(tokens).tobytes()


def test_hidden_rows_go_from_worker_to_worker(pair, sharded):
    """Each position's row of float32 leaves worker 0 once; the last one sends no rows at all."""
    width, n = sharded.config.d_model, 300
    before = [(x.bytes_sent, x.bytes_received) for x in pair.nodes]
    sharded.forward(np.arange(n) % 97 + 5)
    after = [(x.bytes_sent, x.bytes_received) for x in pair.nodes]
    first_sent = after[0][0] - before[0][0]
    last_received = after[1][1] - before[1][1]
    assert n * width * 4 <= first_sent <= 1.05 * n * width * 4
    assert first_sent == last_received
