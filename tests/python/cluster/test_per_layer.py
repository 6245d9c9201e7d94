"""Layers that differ in the experts that work on a token and in width, here and on workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rewritten import FAMILIES, rewritten

import moesaic

PROMPT = list(range(40, 80))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    counts = np.array([1, 3, 2], np.int32)
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    return rewritten("qwen3moe_top3", path, {"qwen3moe.expert_used_count": counts})


def test_each_layer_uses_its_own_number_of_experts(mixed) -> None:
    with moesaic.Model(mixed, n_ctx=64, progress=False, deterministic=True) as m:
        assert [layer.n_active for layer in m.config.layers] == [1, 3, 2]
        assert m.config.n_active == 3 and "n_active 3" in repr(m.config)
        taps = m.capture(PROMPT, ["blocks.*.router.*"])
        for layer, n in enumerate((1, 3, 2)):
            logits = taps[f"blocks.{layer}.router.logits"]
            chosen = taps[f"blocks.{layer}.router.experts"]
            assert chosen.shape == (len(PROMPT), n)
            assert (chosen == np.argsort(-logits, axis=1, kind="stable")[:, :n]).all()
            weights = taps[f"blocks.{layer}.router.weights"]
            assert weights.shape == chosen.shape
            assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_the_same_number_for_all_layers_gives_the_same_bytes(tmp_path) -> None:
    counts = np.full(3, 3, np.uint32)
    path = rewritten("qwen3moe_top3", tmp_path / "a.gguf", {"qwen3moe.expert_used_count": counts})
    logits = []
    for file in (FAMILIES / "qwen3moe_top3.gguf", path):
        with moesaic.Model(file, n_ctx=64, progress=False) as m:
            logits.append(m.forward(PROMPT).tobytes())
    assert logits[0] == logits[1]


def test_workers_give_the_same_bytes(mixed, pair) -> None:
    options = {"n_ctx": 64, "deterministic": True, "progress": False}
    with moesaic.Model(mixed, **options) as m:
        want = m.forward(PROMPT).tobytes()
        inside = m.capture(PROMPT, ["blocks.*.router.*"])
    with pair.load(mixed, **options) as m:
        assert m.forward(PROMPT).tobytes() == want
        again = m.capture(PROMPT, ["blocks.*.router.*"])
        assert {k: again[k].tobytes() for k in again} == {k: inside[k].tobytes() for k in inside}
