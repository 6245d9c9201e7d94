"""to_str_tokens and top: what a token is as text, and which come next."""

from __future__ import annotations

import numpy as np
import pytest

import moesaic


@pytest.fixture(scope="module")
def m():
    with moesaic.Model.demo(progress=False, deterministic=True) as model:
        yield model


def test_tokens_as_text(m):
    ids = m.tokenize("In the beginning")
    names = m.to_str_tokens("In the beginning")
    assert names == m.to_str_tokens(ids) == m.to_str_tokens(ids.tolist())
    assert names[0] == "<|begin|>" and "".join(names[1:]) == "In the beginning"
    assert m.to_str_tokens("") in ([], ["<|begin|>"])
    assert m.to_str_tokens([]) == []
    assert "".join(m.to_str_tokens("a", add_special=False)) == "a"
    assert all("\ufffd" in t for t in m.to_str_tokens("\u5b57", add_special=False))  # 3 bytes


@pytest.mark.parametrize("bad", [[1.5], [-1], [10**9], np.zeros((2, 2), int), b"x", None])
def test_what_has_no_tokens(m, bad):
    with pytest.raises(moesaic.ArgumentError, match=r"\[Model.to_str_tokens\]"):
        m.to_str_tokens(bad)


def test_the_best_tokens(m):
    logits = m.forward("In the beginning God created the")
    best = m.top(logits, 3)
    assert m.top(logits[-1], 3) == best == m.top(logits.astype(np.float64), 3)
    assert best[0][1] >= best[1][1] >= best[2][1] > 0
    assert (
        best[0][0]
        == m.generate("In the beginning God created the", temperature=0, max_tokens=1).text
    )
    whole = m.top(logits, m.config.vocab)
    assert sum(p for _, p in whole) == pytest.approx(1.0)
    same = np.zeros(m.config.vocab, np.float32)
    assert [p for _, p in m.top(same, 2)] == pytest.approx([1 / m.config.vocab] * 2)
    assert m.top(same, 1)[0][0] == m.to_str_tokens([0])[0]  # the lower id
    banned = np.where(np.arange(m.config.vocab) == 7, 1.0, -np.inf)
    assert m.top(banned, 1) == [(m.to_str_tokens([7])[0], 1.0)]


@pytest.mark.parametrize(
    "logits",
    [np.zeros(3), np.zeros((0, 2048)), np.zeros((1, 1, 2048)), [1, 2], np.zeros(2048, int),
     np.full(2048, np.nan)],
)  # fmt: skip
def test_what_is_no_row_of_logits(m, logits):
    with pytest.raises(moesaic.ArgumentError, match=r"\[Model.top\] logits: got"):
        m.top(logits)


@pytest.mark.parametrize("k", [0, -1, 2049, 1.5, True])
def test_k_out_of_range(m, k):
    with pytest.raises(moesaic.ArgumentError, match=r"\[Model.top\] k: got"):
        m.top(np.zeros(2048), k)
