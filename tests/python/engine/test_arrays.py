"""forward, capture, sessions and forward_many: the same numbers by every way to them."""

from __future__ import annotations

import numpy as np
import pytest

import moesaic

# The tiny families were "trained" for fewer tokens than their tests run.
pytestmark = pytest.mark.filterwarnings("ignore:.*trained for")

PROMPT = "It was a bright morning, and nobody in the house had slept."


def test_forward_gives_float32_rows_that_own_their_memory(demo):
    tokens = demo.tokenize(PROMPT)
    logits = demo.forward(tokens)
    assert logits.dtype == np.float32
    assert logits.shape == (len(tokens), demo.config.vocab)
    assert logits.flags.c_contiguous and logits.flags.writeable
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(demo.forward(PROMPT), logits)
    for same in (tokens.tolist(), tokens.astype(np.uint16), tokens.astype(np.int64), tokens[::1]):
        np.testing.assert_array_equal(demo.forward(same), logits)


def test_an_array_outlives_its_model():
    m = moesaic.Model.demo(progress=False)
    logits = m.forward([1, 2, 3])
    c = m.capture([1, 2, 3], "embed")
    before = logits.copy(), c["embed"].copy()
    m.close()
    del m
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(c["embed"], before[1])


@pytest.mark.parametrize("cuts", [[5], [1, 2, 3, 4], [64], [63, 65], list(range(1, 100))])
def test_any_split_of_a_prompt_gives_the_same_bytes(exact, cuts):
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, exact.config.vocab, 130)
    whole = exact.forward(tokens)
    with exact.session() as s:
        parts = [s.forward(part, logits="all") for part in np.split(tokens, cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert s.tokens.tolist() == tokens.tolist()
        assert s.tokens.dtype == np.int32


@pytest.mark.parametrize("deterministic", [True, False])
def test_families_any_split_and_company(family, deterministic):
    path, about = family
    long = about["prompts"]["long"]
    with moesaic.Model(path, n_ctx=1024, deterministic=deterministic, progress=False) as m:
        whole = m.forward(long)
        a, b, c = m.session(), m.session(), m.session()
        n = len(long) // 3
        first = m.forward_many([(a, long[:n]), (b, long[: 2 * n]), (c, long[:1])], logits="all")
        second = m.forward_many([(c, long[1:]), (a, long[n:]), (b, long[2 * n :])], logits="all")
        pairs = [
            np.concatenate([first[0], second[1]]),
            np.concatenate([first[1], second[2]]),
            np.concatenate([first[2], second[0]]),
        ]
        for got in pairs:
            if deterministic:
                np.testing.assert_array_equal(got, whole)
            else:  # MLA has two forms that round differently: an expert may flip in a row
                worst = np.abs(got - whole).max(axis=1)
                assert np.median(worst) < 2e-2
        c.truncate(1)
        again = c.forward(long[1:], logits="all")
        if deterministic:
            np.testing.assert_array_equal(again, whole[1:])


def test_logits_last_all_and_none(demo):
    tokens = demo.tokenize(PROMPT)
    with demo.session() as s:
        last = s.forward(tokens)
        assert last.shape == (demo.config.vocab,)
        s.truncate(0)
        every = s.forward(tokens, logits="all")
        np.testing.assert_array_equal(every[-1], last)
        s.truncate(0)
        assert s.forward(tokens, logits=None) is None
        assert len(s) == len(tokens)


def test_captures_are_consistent_with_each_other(demo):
    c = demo.capture(PROMPT, "*")
    n = len(demo.tokenize(PROMPT))
    assert list(c) == list(demo.capture_names)
    np.testing.assert_array_equal(c["logits"], c.logits)
    np.testing.assert_array_equal(c["embed"], c["blocks.0.resid_pre"])
    for i in range(demo.config.n_layers):
        mid = c[f"blocks.{i}.resid_pre"] + c[f"blocks.{i}.attn_out"]
        np.testing.assert_allclose(c[f"blocks.{i}.resid_mid"], mid, atol=1e-4)
        post = c[f"blocks.{i}.resid_mid"] + c[f"blocks.{i}.mlp_out"]
        np.testing.assert_allclose(c[f"blocks.{i}.resid_post"], post, atol=1e-4)
        assert c[f"blocks.{i}.resid_post"].shape == (n, demo.config.d_model)
    experts = c["blocks.2.router.experts"]
    assert experts.dtype == np.int32
    assert experts.shape == (n, demo.config.n_active)
    assert ((experts >= 0) & (experts < demo.config.n_experts)).all()
    assert c["blocks.2.router.weights"].shape == experts.shape
    assert c["blocks.2.router.logits"].shape == (n, demo.config.n_experts)


@pytest.mark.sanitizer
def test_capture_takes_only_what_is_asked(demo):
    c = demo.capture([1, 2, 3], ["blocks.[01].attn_out", "final_norm"], logits=None)
    assert list(c) == ["blocks.0.attn_out", "blocks.1.attn_out", "final_norm"]
    assert c.logits is None
    assert "embed" not in c
    with pytest.raises(KeyError, match="embed"):
        c["embed"]
    assert "final_norm" in repr(c)
    assert demo.capture([1], "embed", logits="last").logits.shape == (demo.config.vocab,)


def test_capture_of_a_session_is_of_the_new_rows(demo):
    tokens = demo.tokenize(PROMPT)
    whole = demo.capture(tokens, "blocks.1.resid_post")
    with demo.session() as s:
        s.forward(tokens[:4], logits=None)
        rest = s.forward(tokens[4:], logits="all", capture="blocks.1.resid_post")
    assert rest["blocks.1.resid_post"].shape[0] == len(tokens) - 4
    np.testing.assert_allclose(
        rest["blocks.1.resid_post"], whole["blocks.1.resid_post"][4:], rtol=0.1, atol=0.1
    )
    assert rest.logits.shape[0] == len(tokens) - 4


@pytest.mark.parametrize("bad", ["blocks.1.resid_pots", "blocks.99.*", "nothing", ""])
def test_an_unknown_name_lists_the_nearest(demo, bad):
    with pytest.raises(moesaic.ArgumentError, match="nearest are"):
        demo.capture([1], bad)
    with pytest.raises(moesaic.ArgumentError):
        demo.capture([1], [3])


@pytest.mark.sanitizer
def test_fork_and_truncate(exact):
    tokens = exact.tokenize(PROMPT)
    with exact.session() as s:
        s.forward(tokens[:7], logits=None)
        child = s.fork()
        early = s.fork(3)
        assert (len(child), len(early)) == (7, 3)
        a = s.forward(tokens[7:])
        b = child.forward(tokens[7:])
        np.testing.assert_array_equal(a, b)
        s.close()
        np.testing.assert_array_equal(early.forward(tokens[3:]), a)
        grandchild = child.fork(0)
        assert len(grandchild) == 0
        np.testing.assert_array_equal(grandchild.forward(tokens), a)
        with pytest.raises(moesaic.ClosedError):
            s.forward([1])
        with pytest.raises(moesaic.ClosedError):
            s.fork()
        with pytest.raises(moesaic.ClosedError):
            _ = s.tokens
        assert repr(s) == "Session(closed)"
        s.close()
    for bad in (-1, 8, 1.0, True, "1"):
        with pytest.raises(moesaic.ArgumentError):
            early.fork(10**9 if bad == 8 else bad)
        with pytest.raises(moesaic.ArgumentError):
            early.truncate(10**9 if bad == 8 else bad)


def test_forward_many_refuses_doubles_and_strangers(demo):
    with demo.session() as s, moesaic.Model.demo(progress=False) as other:
        with pytest.raises(moesaic.ArgumentError, match="twice"):
            demo.forward_many([(s, [1]), (s, [2])])
        with other.session() as stranger, pytest.raises(moesaic.ArgumentError, match="another"):
            demo.forward_many([(s, [1]), (stranger, [2])])
        with pytest.raises(moesaic.ArgumentError, match="pairs"):
            demo.forward_many([s])
        assert demo.forward_many([]) == []
        assert len(s) == 0
        with pytest.raises(moesaic.ArgumentError):
            demo.forward_many([(s, [1]), (demo.session(), [])])
        assert len(s) == 0
        assert s.forward([1, 2]).shape == (demo.config.vocab,)


def test_a_session_ends_at_n_ctx(demo):
    with demo.session() as s:
        s.forward([5] * 500, logits=None)
        with pytest.raises(moesaic.ArgumentError, match=r"n_ctx = 512"):
            s.forward([5] * 13)
        assert len(s) == 500
        s.forward([5] * 12)
        with pytest.raises(moesaic.ArgumentError):
            s.forward([5])


@pytest.mark.sanitizer
@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_save_and_load(tmp_path, kv_type):
    path = tmp_path / "s.session"
    with moesaic.Model.demo(progress=False, deterministic=True, kv_type=kv_type) as m:
        tokens = m.tokenize(PROMPT)
        s = m.session()
        s.forward(tokens, logits=None)
        s.save(path)
        assert path.stat().st_mode & 0o077 == 0
        want = s.forward([7, 8])
    with moesaic.Model.demo(progress=False, deterministic=True, kv_type=kv_type) as m:
        loaded = m.load_session(path)
        assert loaded.tokens.tolist() == tokens.tolist()
        np.testing.assert_array_equal(loaded.forward([7, 8]), want)
    other = {"f16": "f32", "f32": "q8_0", "q8_0": "f16"}[kv_type]
    with (
        moesaic.Model.demo(progress=False, kv_type=other) as m,
        pytest.raises(moesaic.FormatError, match="another model or cache type"),
    ):
        m.load_session(path)
    assert [p.name for p in tmp_path.iterdir()] == ["s.session"]


def test_damaged_session_files(tmp_path, demo):
    path = tmp_path / "s"
    with demo.session() as s:
        s.forward([1, 2, 3, 4], logits=None)
        s.save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(200):
        bad = bytearray(good)
        if rng.random() < 0.3:
            bad = bad[: rng.integers(0, len(bad))]
        else:
            bad[rng.integers(0, len(bad))] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bad)
        with pytest.raises(moesaic.FormatError):
            demo.load_session(path)
    path.write_bytes(good)
    assert demo.load_session(path).tokens.tolist() == [1, 2, 3, 4]
    for bad_path in (tmp_path / "no", tmp_path):
        with pytest.raises(moesaic.IoError):
            demo.load_session(bad_path)
    with demo.session() as s, pytest.raises(moesaic.IoError):
        s.save(tmp_path / "no" / "folder")
    for wrong in (3, None, b"\0", "a\0b"):
        with pytest.raises(moesaic.ArgumentError):
            demo.load_session(wrong)


def test_sessions_that_fill_the_pool(tmp_path):
    with moesaic.Model.demo(progress=False, n_ctx=512, kv_tokens=512) as m:
        s = m.session()
        s.forward([3] * 500, logits=None)
        with pytest.raises(moesaic.OutOfMemoryError, match="1 session holds 500 tokens") as caught:
            m.generate([1, 2, 3], max_tokens=100)
        assert caught.value.needed > caught.value.free
        s.save(tmp_path / "s")
        with pytest.raises(moesaic.OutOfMemoryError):
            m.load_session(tmp_path / "s")
        assert len(s) == 500
        s.close()
        assert len(m.generate([1, 2, 3], max_tokens=10, ignore_eos=True).tokens) == 10
