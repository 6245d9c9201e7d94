"""Worst differences of Moesaic to `transformers` on the tiny models of tests/data/families.

Prints one JSON line per model: logits (median and maximum over the stored rows of a row's largest
difference, rows above 0.05), hidden states, router choices, greedy tokens. The limits are
issue 3's; exit status 1 when one is broken. Not a test (the tests have their own, derived
tolerances): a table for people. Needs only moesaic and numpy.

    python bench/python/family_diff.py [--kv-type f32] [--deterministic] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import moesaic

FAMILIES = Path(__file__).resolve().parents[2] / "tests" / "data" / "families"
MEDIAN_LIMIT = 4e-3
AGAINST_LLAMA = 1.1  # where experts are quantized: times llama.cpp's own difference
ROW_LIMIT = 0.05
ROWS_ABOVE = 0.02
N_GREEDY = 16


def logits_part(model: moesaic.Model, facts: dict[str, Any], golden: Any) -> dict[str, Any]:
    """Row-wise differences of the logits of every prompt."""
    rows: list[float] = []
    for name, tokens in facts["prompts"].items():
        got = np.asarray(model.forward(tokens))[golden[f"rows.{name}"]]
        rows += [float(x) for x in np.abs(got - golden[f"logits.{name}"]).max(-1)]
    return {
        "median": float(np.median(rows)),
        "max": max(rows),
        "rows": len(rows),
        "rows_above_0.05": sum(r > ROW_LIMIT for r in rows),
        "f16_cache_alone": facts["margins"]["f16_cache_median"],
    }


def capture_part(model: moesaic.Model, facts: dict[str, Any], golden: Any) -> dict[str, Any]:
    """Largest difference of hidden states relative to their size; router rows that differ."""
    names = facts["captures"]
    got = model.capture(facts["prompts"][facts["captured_prompt"]], names)
    worst, where, flipped, weight = 0.0, "", 0, 0.0
    for name in names:
        ours, theirs = np.asarray(got[name]), golden[f"capture.{name}"]
        if name.endswith("router.experts"):
            order = np.argsort(ours, -1)
            same = (np.take_along_axis(ours, order, -1) == theirs).all(-1)
            flipped += int((~same).sum())
            weights = np.asarray(got[name.replace("experts", "weights")])
            diff = np.abs(
                np.take_along_axis(weights, order, -1)
                - golden[f"capture.{name.replace('experts', 'weights')}"]
            )[same]
            weight = max(weight, float(diff.max(initial=0)))
        elif not name.endswith("router.weights"):
            off = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            if off > worst:
                worst, where = off, name
    out: dict[str, Any] = {"hidden_max_relative": worst, "hidden_worst_at": where}
    if any("router" in name for name in names):
        out |= {"router_rows_flipped": flipped, "router_weight_max": weight}
    return out


def measure(facts: dict[str, Any], args: argparse.Namespace) -> bool:
    """Print the line of one model; True when it is within the limits."""
    golden = np.load(FAMILIES / facts["golden"])
    model = moesaic.Model(
        str(FAMILIES / facts["model"]),
        n_ctx=512,
        progress=False,
        kv_type=args.kv_type,
        deterministic=args.deterministic,
    )
    line: dict[str, Any] = {"model": facts["name"]}
    with model:
        line |= logits_part(model, facts, golden) | capture_part(model, facts, golden)
        equal = []
        for name, wanted in facts["greedy"].items():
            run = model.generate(facts["prompts"][name], max_tokens=N_GREEDY, temperature=0)
            equal.append([int(t) for t in run.tokens] == wanted)
        line["greedy_equal"] = equal
    # Quantized activations are no error of the forward pass: llama.cpp's are the measure then.
    llama = facts["llama_cpp"].get("mxfp4_experts")
    if llama is not None:
        line["llama_median"] = llama["median_row_logit_diff"]
        line["llama_max"] = llama["max_abs_logit_diff"]
        good = line["median"] <= AGAINST_LLAMA * line["llama_median"]
    else:
        good = line["median"] <= MEDIAN_LIMIT
        good &= line["rows_above_0.05"] <= ROWS_ABOVE * line["rows"]
    good &= all(equal)
    line["ok"] = good
    print(json.dumps({k: float(f"{v:.3g}") if type(v) is float else v for k, v in line.items()}))
    return good


def main() -> None:
    """Measure the named models, or all."""
    parser = argparse.ArgumentParser(description="Moesaic against transformers, per family")
    parser.add_argument("names", nargs="*", help="models; none: all")
    parser.add_argument("--kv-type", choices=["f16", "f32"], default="f16")
    parser.add_argument("--deterministic", action="store_true")
    args = parser.parse_args()
    every = {p.stem: json.loads(p.read_text()) for p in sorted(FAMILIES.glob("*.json"))}
    unknown = [n for n in args.names if n not in every]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; there are {', '.join(every)}")
    good = [measure(every[name], args) for name in args.names or every]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
