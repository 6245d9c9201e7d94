"""What a model is, as data that cannot be changed: read from its file by the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from moesaic._tables import html_table


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's kind.

    Attributes
    ----------
    attention : str
        ``"mla"`` (a latent cache) or ``"grouped"`` (heads share keys and values in groups).
    ffn : str
        ``"moe"`` or ``"dense"``.
    window : int
        Sliding attention window in tokens; 0: none.
    d_ff : int
        Width of a dense layer; 0: a MoE layer.
    n_active : int
        Experts that work on a token in a MoE layer; 0: a dense layer.
    """

    attention: str
    ffn: str
    window: int
    d_ff: int = 0
    n_active: int = 0

    def __str__(self) -> str:
        return self._text(["window"])

    def _text(self, names: Sequence[str]) -> str:
        given = ((name, getattr(self, name)) for name in names)
        more = "".join(f", {name} {value}" for name, value in given if value)
        return f"{self.attention}/{self.ffn}{more}"


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """A model's shape and choices, in the field's own words; 0 where something does not apply.

    Attributes
    ----------
    arch, name : str
        ``general.architecture`` and ``general.name`` of the file.
    n_layers, d_model, n_heads, n_kv_heads, d_head_k, d_head_v, d_ff, vocab : int
        Sizes. ``d_ff`` is that of dense layers; where layers differ, the largest.
    n_ctx_train : int
        Context length the model was trained for, in tokens.
    n_experts, n_active, n_shared, d_ff_expert : int
        Routed experts of a MoE layer, how many of them work on a token (where layers differ, the
        most), shared experts, and the width of one expert.
    router : str
        ``"softmax"``, ``"sigmoid"``, ``"softmax_selected"``, or ``""``.
    n_expert_groups, n_expert_groups_used : int
        Groups of experts, and how many a token may choose from.
    q_lora, kv_lora, d_nope, d_rope : int
        Widths of multi-head latent attention.
    norm_eps, attention_scale : float
        Epsilon of the norms, and the factor of attention scores.
    layers : tuple of Layer
        Every layer's kind, (n_layers,).
    """

    arch: str
    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head_k: int
    d_head_v: int
    d_ff: int
    vocab: int
    n_ctx_train: int
    n_experts: int
    n_active: int
    n_shared: int
    d_ff_expert: int
    router: str
    n_expert_groups: int
    n_expert_groups_used: int
    q_lora: int
    kv_lora: int
    d_nope: int
    d_rope: int
    norm_eps: float
    attention_scale: float
    layers: tuple[Layer, ...]

    @classmethod
    def _from_core(cls, values: dict[str, Any]) -> Config:
        """Make one from what the core reports."""
        rest = {f.name: values[f.name] for f in fields(cls) if f.name != "layers"}
        return cls(**rest, layers=tuple(Layer(*layer) for layer in values["layers"]))

    def __repr__(self) -> str:
        given = (f for f in fields(self) if f.name != "layers")
        values = [f"{f.name}={getattr(self, f.name)!r}" for f in given]
        return f"Config({', '.join(values)}, layers=<{layers_text(self.layers)}>)"

    def _repr_html_(self) -> str:
        rows = [(f.name, str(getattr(self, f.name))) for f in fields(self) if f.name != "layers"]
        return html_table([*rows, ("layers", layers_text(self.layers))], heads=False)


_MOST_RUNS = 8
_LONGEST_PERIOD = 8


def layers_text(layers: Sequence[Layer]) -> str:
    """Return the kinds of layers with equal ones counted, also where several kinds take turns.

    Examples
    --------
    >>> dense, moe = Layer("mla", "dense", 0), Layer("mla", "moe", 0)
    >>> layers_text([dense, moe, moe])
    '1 x mla/dense, 2 x mla/moe'
    >>> near, far = Layer("grouped", "moe", 128), Layer("grouped", "moe", 0)
    >>> layers_text([near, far] * 12)
    '12 x (grouped/moe, window 128; grouped/moe)'
    >>> layers_text([Layer("grouped", "moe", 0, n_active=n) for n in (2, 2, 4)])
    '2 x grouped/moe, n_active 2, 1 x grouped/moe, n_active 4'
    """
    differing = [
        name
        for name in ("d_ff", "n_active")
        if len({getattr(layer, name) for layer in layers} - {0}) > 1
    ]
    names = [layer._text(["window", *differing]) for layer in layers]
    runs: list[str] = []
    at = 0
    while at < len(names):
        period, times = _longest_run(names, at)
        unit = "; ".join(names[at : at + period])
        runs.append(f"{times} x {unit}" if period == 1 else f"{times} x ({unit})")
        at += period * times
    if len(runs) > _MOST_RUNS:
        half = _MOST_RUNS // 2
        runs = [*runs[:half], f"... {len(runs) - 2 * half} more runs ...", *runs[-half:]]
    return ", ".join(runs) or "none"


def _longest_run(names: Sequence[str], begin: int) -> tuple[int, int]:
    """Return the period, and how often it comes, that cover most from ``begin``."""
    best = (1, 1)
    for period in range(1, _LONGEST_PERIOD + 1):
        unit = names[begin : begin + period]
        times = 1
        while names[begin + times * period : begin + (times + 1) * period] == unit:
            times += 1
        if times > 1 and len(unit) == period and period * times > best[0] * best[1]:
            best = (period, times)
    return best
