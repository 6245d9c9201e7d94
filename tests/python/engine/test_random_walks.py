"""Random programs over sessions, batches and caches against fresh runs, byte for byte.

With deterministic=True there is one right answer for a token list, however it came about: forks,
truncations, chunks, evicted or reused prefixes, and whoever shared its steps.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import moesaic

FAMILIES = Path(__file__).parents[2] / "data" / "families"

pytestmark = pytest.mark.filterwarnings("ignore:.*trained for")

KINDS = ["llama_moe", "deepseek2_kimi", "gptoss_mxfp4", "qwen3_tied"]


class Walk:
    """Sessions with the token lists they should hold, and answers remembered by token list."""

    def __init__(self, model, seed):
        self.m = model
        self.rng = np.random.default_rng(seed)
        self.sessions = []
        self.known = {}

    def tokens(self, most):
        # Few different tokens, so that equal prefixes are common.
        return self.rng.integers(5, 8, self.rng.integers(1, most + 1)).tolist()

    def right_logits(self, tokens):
        key = tuple(tokens)
        if key not in self.known:
            self.known[key] = self.m.forward(tokens)[-1]
        return self.known[key]

    def pick(self):
        return int(self.rng.integers(len(self.sessions)))

    def step(self):
        roll = self.rng.random()
        if not self.sessions or (roll < 0.1 and len(self.sessions) < 6):
            self.sessions.append((self.m.session(), []))
        elif roll < 0.3:
            s, have = self.sessions[self.pick()]
            if len(have) < 150:
                new = self.tokens(40)
                have += new
                np.testing.assert_array_equal(s.forward(new), self.right_logits(have))
        elif roll < 0.45:
            chosen = [x for x in self.sessions if len(x[1]) < 150 and self.rng.random() < 0.6]
            items = []
            for s, have in chosen:
                new = self.tokens(20)
                have += new
                items.append((s, new))
            got = self.m.forward_many(items)
            for (_, have), logits in zip(chosen, got, strict=True):
                np.testing.assert_array_equal(logits, self.right_logits(have))
        elif roll < 0.6 and len(self.sessions) < 6:
            s, have = self.sessions[self.pick()]
            n = int(self.rng.integers(len(have) + 1))
            self.sessions.append((s.fork(n), have[:n]))
        elif roll < 0.75:
            s, have = self.sessions[self.pick()]
            n = int(self.rng.integers(len(have) + 1))
            s.truncate(n)
            del have[n:]
        elif roll < 0.8:
            s, _ = self.sessions.pop(self.pick())
            s.close()
        elif roll < 0.95:
            prompts = [self.tokens(80) for _ in range(self.rng.integers(1, 5))]
            options = {"max_tokens": 4, "temperature": 0, "logprobs": 0}
            for prompt, g in zip(prompts, self.m.generate(prompts, **options), strict=True):
                so_far = list(prompt)
                for token, logprob in zip(g.tokens, g.logprobs, strict=True):
                    row = self.right_logits(so_far).astype(np.float64)
                    assert token == row.argmax()
                    want = row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
                    assert logprob == np.float32(want)
                    so_far.append(int(token))
        else:
            head, tail = self.tokens(60), self.tokens(5)
            want = 0.0
            for i, token in enumerate(tail):
                row = self.right_logits(head + tail[:i]).astype(np.float64)
                want += row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
            assert self.m.score([head], [tail])[0][0] == pytest.approx(want, abs=1e-9)
        for s, have in self.sessions:
            assert s.tokens.tolist() == have


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_random_programs_give_the_bytes_of_fresh_runs(name, seed):
    # A pool that is small for six sessions and a cache: things get evicted.
    with moesaic.Model(
        FAMILIES / f"{name}.gguf", n_ctx=256, kv_tokens=2048, deterministic=True, progress=False
    ) as m:
        walk = Walk(m, seed)
        for _ in range(60):
            walk.step()
        for s, _ in walk.sessions:
            s.close()
        m.clear_cache()
        stats = m.stats()
        while stats["active"] or stats["cached"]:
            stats = m.stats()
        m.session().close()  # the engine has seen all closings by then
        assert m.stats()["kv_tokens_free"] == m.kv_tokens


@pytest.mark.sanitizer
def test_random_programs_of_many_threads_at_once():
    with moesaic.Model(
        FAMILIES / "llama_moe.gguf", n_ctx=256, kv_tokens=8192, deterministic=True, progress=False
    ) as m:
        errors = []

        def run(seed):
            try:
                walk = Walk(m, seed)
                for _ in range(25):
                    walk.step()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(10 + i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not errors, errors[0]


@pytest.mark.parametrize("name", KINDS)
def test_prompts_of_several_steps(name):
    """1,300 tokens are three steps: logits, captures and targets come back whole and in order."""
    rng = np.random.default_rng(2)
    with moesaic.Model(
        FAMILIES / f"{name}.gguf", n_ctx=2048, deterministic=True, progress=False
    ) as m:
        tokens = rng.integers(5, m.config.vocab, 1300)
        whole = m.capture(tokens, ["blocks.1.resid_post", "final_norm"])
        assert whole.logits.shape == (1300, m.config.vocab)
        with m.session() as s:
            cuts = np.split(tokens, [7, 500, 513, 1299])
            parts = [s.forward(part, logits="all", capture="final_norm") for part in cuts]
        np.testing.assert_array_equal(np.concatenate([p.logits for p in parts]), whole.logits)
        np.testing.assert_array_equal(
            np.concatenate([p["final_norm"] for p in parts]), whole["final_norm"]
        )
        x = whole.logits[:-1].astype(np.float64)
        logp = x - x.max(axis=1, keepdims=True)
        logp -= np.log(np.exp(logp).sum(axis=1, keepdims=True))
        want = logp[np.arange(1299), tokens[1:]].sum()
        assert m.score([tokens[:1]], [tokens[1:]])[0][0] == pytest.approx(want, abs=1e-6)
