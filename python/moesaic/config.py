"""What a model is, as data that cannot be changed: read from its file by the core."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


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
    """

    attention: str
    ffn: str
    window: int


@dataclass(frozen=True, slots=True)
class Config:
    """A model's shape and choices, in the field's own words; 0 where something does not apply.

    Attributes
    ----------
    arch, name : str
        ``general.architecture`` and ``general.name`` of the file.
    n_layers, d_model, n_heads, n_kv_heads, d_head_k, d_head_v, d_ff, vocab : int
        Sizes. ``d_ff`` is that of dense layers.
    n_ctx_train : int
        Context length the model was trained for, in tokens.
    n_experts, n_active, n_shared, d_ff_expert : int
        Routed experts of a MoE layer, how many of them work on a token, shared experts, and the
        width of one expert.
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
