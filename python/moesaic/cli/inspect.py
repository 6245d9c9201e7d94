"""``moesaic inspect FILE``: what a GGUF holds and what it takes to run it. Reads headers only."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic import _core
from moesaic.cli import options as o
from moesaic.errors import FormatError
from moesaic.gguf import GGUF, Tensor

CONTEXT_LENGTHS = (4096, 16384, 65536, 262144)


def inspect(
    file: o.ModelPath,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List every metadata key.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template.")] = False,
    as_json: o.Json = False,
) -> None:
    """Show what a file holds, and the memory it needs by context length."""
    with GGUF(str(file)) as gguf:
        report = describe(gguf, file)
        if as_json:
            o.print_json(report | {"tensors": [tensor_row(n, t) for n, t in gguf.tensors.items()]})
            return
        print_report(report)
        if metadata:
            print("\nmetadata")
            print(o.table([(k, short(v)) for k, v in gguf.metadata.items()]))
        if tensors:
            print("\ntensors")
            rows = [tensor_row(n, t) for n, t in gguf.tensors.items()]
            cells: list[tuple[str, ...]] = [
                (
                    r["name"],
                    " x ".join(map(str, r["shape"])),
                    r["qtype"],
                    o.human_bytes(r["nbytes"]),
                )
                for r in rows
            ]
            print(o.table(cells, right=frozenset({3})))
        if template:
            print(f"\n{gguf.metadata.get('tokenizer.chat_template', '(no chat template)')}")


def describe(gguf: GGUF, path: Path) -> dict[str, Any]:
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
    config, reason = runnable(path)
    return {
        "file": str(path),
        "parts": [str(p) for p in gguf.paths],
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
        "memory": memory_by_context(path, config) if config else [],
        "tokenizer": {
            "model": m.get("tokenizer.ggml.model"),
            "pre": m.get("tokenizer.ggml.pre"),
            "vocab": len(m["tokenizer.ggml.tokens"]) if "tokenizer.ggml.tokens" in m else 0,  # type: ignore[arg-type]
        },
        "chat_template": "tokenizer.chat_template" in m,
    }


def runnable(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the configuration, or why Moesaic cannot run the file."""
    try:
        return _core.describe(str(path)), None
    except FormatError as error:
        return None, str(error)


def memory_by_context(path: Path, config: dict[str, Any]) -> list[dict[str, int]]:
    """Bytes needed at some context lengths, up to the one the model was trained for."""
    longest = int(config["n_ctx_train"]) or CONTEXT_LENGTHS[-1]
    lengths = sorted(
        {min(n, longest) for n in CONTEXT_LENGTHS} | {min(longest, CONTEXT_LENGTHS[-1])}
    )
    return [{"n_ctx": n} | _core.memory_need(str(path), n_ctx=n) for n in lengths]


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
    bits = f"{r['bits_per_weight']:.2f} bits a weight"
    size = f"{o.human_bytes(r['bytes'])} in {len(r['parts'])} file(s), {bits}"
    head: list[tuple[str, ...]] = [
        ("architecture", r["arch"] + (f" ({r['name']})" if r["name"] else "")),
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
    if t["model"]:
        pre = f" / {t['pre']}" if t["pre"] else ""
        head.append(("tokenizer", f"{t['model']}{pre}, {t['vocab']:,} tokens"))
    head.append(("chat template", "yes" if r["chat_template"] else "no"))
    print(o.table(head))
    print("\ntypes")
    rows: list[tuple[str, ...]] = [("type", "tensors", "parameters", "bytes")]
    for name, row in sorted(r["types"].items(), key=lambda item: -item[1]["bytes"]):
        rows.append((name, str(row["tensors"]), f"{row['params']:,}", o.human_bytes(row["bytes"])))
    print(o.table(rows, right=frozenset({1, 2, 3})))
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
            cells.append((span, f"{o.human_bytes(each)} each", " ".join(run["tensors"])))
        print(o.table(cells, right=frozenset({1})))
    if c is None:
        print(f"\nMoesaic cannot run this file: {r['not_runnable_because']}")
        return
    print("\nmemory to run it")
    rows = [("context", "weights", "KV cache", "scratch", "total")]
    for need in r["memory"]:
        keys = ("weights_bytes", "kv_bytes", "scratch_bytes", "total_bytes")
        rows.append((f"{need['n_ctx']:,}", *(o.human_bytes(need[k]) for k in keys)))
    print(o.table(rows, right=frozenset({0, 1, 2, 3, 4})))


def short(value: object, limit: int = 80) -> str:
    """One line of a metadata value."""
    text = repr(value) if not hasattr(value, "__len__") or isinstance(value, str) else None
    if text is None:
        text = f"[{len(value)} values]"  # type: ignore[arg-type]
    return text if len(text) <= limit else text[: limit - 3] + "..."
