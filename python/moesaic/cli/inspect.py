"""``moesaic inspect FILE``: what a GGUF holds and what it takes to run it. Reads headers only."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer

from moesaic import _core
from moesaic.cli import options as o
from moesaic.cli.terminal import command, human_bytes, one_line, plain, print_json, table
from moesaic.description import describe_metadata
from moesaic.errors import FormatError
from moesaic.gguf import GGUF, Tensor
from moesaic.overrides import Override

CONTEXT_LENGTHS = (4096, 16384, 65536, 262144)


@command
def inspect(
    file: o.ModelPath,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List every metadata key.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template.")] = False,
    override: o.OverrideKeys = None,
    as_json: o.Json = False,
) -> None:
    """Show what a file holds, and the memory it needs by context length."""
    overrides = o.override_values(override, "inspect")
    with GGUF(file) as gguf:
        report = describe(gguf, overrides)
        if as_json:
            # With these two it is a description, which `moesaic plan` takes instead of the file.
            rows = [tensor_row(n, t) for n, t in gguf.tensors.items()]
            print_json(report | {"metadata": describe_metadata(gguf), "tensors": rows})
            return
        print_report(report)
        if metadata:
            print("\nmetadata")
            print(table([(k, short(v)) for k, v in gguf.metadata.items()]))
        if tensors:
            print("\ntensors")
            rows = [tensor_row(n, t) for n, t in gguf.tensors.items()]
            cells: list[tuple[str, ...]] = [
                (
                    r["name"],
                    " x ".join(map(str, r["shape"])),
                    r["qtype"],
                    human_bytes(r["nbytes"]),
                )
                for r in rows
            ]
            print(table(cells, right=frozenset({3})))
        if template:
            text = gguf.metadata.get("tokenizer.chat_template", "(no chat template)")
            print(f"\n{plain(str(text), keep=chr(10) + chr(9))}")


def describe(gguf: GGUF, overrides: Mapping[str, Override] | None = None) -> dict[str, Any]:
    """Everything ``inspect`` says, as plain data."""
    m = gguf.metadata
    arch = str(m.get("general.architecture", ""))
    by_type: dict[str, dict[str, int]] = {}
    for t in gguf.tensors.values():
        row = by_type.setdefault(t.qtype, {"tensors": 0, "params": 0, "bytes": 0})
        row["tensors"] += 1
        row["params"] += math.prod(t.shape)
        row["bytes"] += t.nbytes
    params = sum(r["params"] for r in by_type.values())
    n_bytes = sum(r["bytes"] for r in by_type.values())
    config, reason = runnable(gguf, overrides or {})
    tokens = m.get("tokenizer.ggml.tokens")
    return {
        "files": list(gguf.paths),
        "gguf_version": gguf.version,
        "arch": arch,
        "name": str(m.get("general.name", "")),
        "params": params,
        "bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / params if params else 0.0,
        "types": by_type,
        "layers": layer_kinds(gguf),
        "config": config,
        "not_runnable_because": reason,
        "notes": notes(gguf),
        "memory": memory_by_context(gguf, config, overrides or {}) if config else [],
        "tokenizer": {
            "model": m.get("tokenizer.ggml.model"),
            "pre": m.get("tokenizer.ggml.pre"),
            "vocab": len(tokens) if isinstance(tokens, list) else 0,
        },
        "chat_template": "tokenizer.chat_template" in m,
    }


def runnable(
    gguf: GGUF, overrides: Mapping[str, Override]
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the configuration, or why Moesaic cannot run the file."""
    if not gguf.tensors:
        return None, "it holds no tensors, only what a tokenizer needs"
    try:
        first = os.fsencode(gguf.paths[0])  # a name need not be UTF-8
        return _core.describe(first, dict(overrides)), None
    except FormatError as error:
        return None, str(error)


def notes(gguf: GGUF) -> list[str]:
    """What a reader of the file should know about how it is run."""
    n = sum(name.endswith(".input_scale") for name in gguf.tensors)
    if n == 0:
        return []
    return [
        f"{n} tensors named .input_scale are not used: they are for engines that round activations "
        "to 4 bits"
    ]


def memory_by_context(
    gguf: GGUF, config: dict[str, Any], overrides: Mapping[str, Override]
) -> list[dict[str, int]]:
    """Bytes that one sequence needs at some lengths, up to the one the model was trained for."""
    longest = int(config["n_ctx_train"]) or CONTEXT_LENGTHS[-1]
    lengths = {min(n, longest) for n in CONTEXT_LENGTHS}
    first = os.fsencode(gguf.paths[0])
    return [
        {"n_ctx": n} | _core.memory_need(first, n_ctx=n, overrides=dict(overrides))
        for n in sorted(lengths)
    ]


def layer_kinds(gguf: GGUF) -> list[dict[str, Any]]:
    """Runs of layers that hold the same tensors: what each weighs and how many there are."""
    layers: dict[int, Counter[str]] = {}
    for name, t in gguf.tensors.items():
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) > 2 and parts[1].isdigit():
            layers.setdefault(int(parts[1]), Counter())[parts[2]] += t.nbytes
    runs: list[dict[str, Any]] = []
    for n in sorted(layers):
        kind = sorted(layers[n])
        if runs and runs[-1]["tensors"] == kind and runs[-1]["last"] == n - 1:
            runs[-1]["last"] = n
            runs[-1]["bytes"] += layers[n].total()
        else:
            runs.append({"first": n, "last": n, "tensors": kind, "bytes": layers[n].total()})
    return runs


def tensor_row(name: str, t: Tensor) -> dict[str, Any]:
    """One tensor as plain data."""
    return {"name": name, "shape": list(t.shape), "qtype": t.qtype, "nbytes": t.nbytes}


def print_report(r: dict[str, Any]) -> None:
    """The report for people."""
    n_files = len(r["files"])
    size = human_bytes(r["bytes"]) + (f" in {n_files} files" if n_files > 1 else "")
    if r["params"]:
        size += f", {r['bits_per_weight']:.2f} bits a weight"
    head: list[tuple[str, ...]] = [
        ("architecture", (r["arch"] or "(none)") + (f" ({r['name']})" if r["name"] else "")),
        ("parameters", f"{r['params']:,}"),
        ("size", size),
    ]
    c = r["config"]
    if c is not None:
        head.append(("layers", f"{c['n_layers']}, width {c['d_model']}, {c['n_heads']} heads"))
        if c["n_experts"]:
            head.append(
                ("experts", f"{c['n_experts']}, {c['n_active']} a token, {c['n_shared']} shared")
            )
        head.append(("trained context", f"{c['n_ctx_train']:,} tokens"))
    t = r["tokenizer"]
    if t["model"] or t["vocab"]:
        pre = f" / {t['pre']}" if t["pre"] else ""
        head.append(("tokenizer", f"{t['model'] or 'unnamed'}{pre}, {t['vocab']:,} tokens"))
    head.append(("chat template", "yes" if r["chat_template"] else "no"))
    head += [("note", note) for note in r["notes"]]
    print(table(head))
    if r["types"]:
        print("\ntypes")
        rows: list[tuple[str, ...]] = [("type", "tensors", "parameters", "bytes")]
        for name, row in sorted(r["types"].items(), key=lambda item: -item[1]["bytes"]):
            n_bytes = human_bytes(row["bytes"])
            rows.append((name, str(row["tensors"]), f"{row['params']:,}", n_bytes))
        print(table(rows, right=frozenset({1, 2, 3})))
    if r["layers"]:
        print("\nlayers")
        cells: list[tuple[str, ...]] = []
        for run in r["layers"]:
            span = (
                str(run["first"])
                if run["first"] == run["last"]
                else f"{run['first']}-{run['last']}"
            )
            each = run["bytes"] / (run["last"] - run["first"] + 1)
            cells.append((span, f"{human_bytes(each)} each", " ".join(run["tensors"])))
        print(table(cells, right=frozenset({1})))
    if c is None:
        print(f"\nMoesaic cannot run this file: {one_line(r['not_runnable_because'])}")
        return
    print_memory(r["memory"])


def print_memory(needs: list[dict[str, int]]) -> None:
    """What it takes to run one sequence, by its length, and what this machine has."""
    columns = {"weights": "weights_bytes", "made at load": "derived_bytes"}
    if not any(need["derived_bytes"] for need in needs):
        del columns["made at load"]
    columns |= {"KV cache": "kv_bytes", "scratch": "scratch_bytes", "total": "total_bytes"}
    rows: list[tuple[str, ...]] = [("context", *columns)]
    for need in needs:
        rows.append((f"{need['n_ctx']:,}", *(human_bytes(need[k]) for k in columns.values())))
    print("\nmemory to run it")
    print(table(rows, right=frozenset(range(len(rows[0])))))
    print(f"free on this machine: {human_bytes(_core.available_memory_bytes())}")


def short(value: object, limit: int = 80) -> str:
    """One line of a metadata value; of an array its first values and their number."""
    if isinstance(value, list | np.ndarray):
        some = ", ".join(short(v, 16) for v in value[:4])
        more = ", ..." if len(value) > 4 else ""
        text = f"{len(value)} values: {some}{more}"
    else:
        text = str(value.item()) if isinstance(value, np.generic) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
