"""Runs a tiny model in Hugging Face `transformers`: logits, hidden states, router, greedy tokens.

Float32, eager attention, one sequence, no cache: the slow and plain way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from oracle.specs import VOCAB, Spec
from oracle.weights import F32, fill, snap_to_mxfp4


def build(spec: Spec, *, seed: int, changes: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Make the model with its seeded weights.

    Parameters
    ----------
    spec : Spec
    seed : int
    changes : dict, optional
        Configuration values that differ from the spec ("rope_parameters.beta_fast" for a nested
        one): the twin that is compared with llama.cpp.

    Returns
    -------
    model, config
    """
    arguments = copy.deepcopy(spec.config)
    for key, value in (changes or {}).items():
        outer, _, inner = key.partition(".")
        if inner:
            arguments[outer][inner] = value
        else:
            arguments[outer] = value
    config = getattr(transformers, f"{spec.hf}Config")(
        vocab_size=VOCAB,
        bos_token_id=VOCAB - 3,
        eos_token_id=VOCAB - 2,
        pad_token_id=None,
        **arguments,
    )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = getattr(transformers, f"{spec.hf}ForCausalLM")(config).float().eval()
    assert model.config._attn_implementation == "eager"
    tied = bool(config.tie_word_embeddings)
    fill(model, seed=seed, gate_gain=spec.gate_gain, tied=tied, arch=spec.arch)
    if spec.experts == "MXFP4":
        snap_to_mxfp4(model)
    return model, config


def logits(model: Any, tokens: list[int]) -> F32:
    """Logits of every position, float32 (n, vocab)."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return np.asarray(out.float().numpy(), np.float32)


class _F16Cache(transformers.DynamicCache):
    """A cache that keeps what it is given (keys and values, or MLA's latent rows) as float16."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Round, then do as the base class does."""
        keys, values = key_states.half().float(), value_states.half().float()
        return super().update(keys, values, layer_idx, *args, **kwargs)


def logits_f16_cache(model: Any, tokens: list[int]) -> F32:
    """Logits as an engine gets them that is exact but for a float16 cache; (n, vocab)."""
    with torch.no_grad():
        cache = _F16Cache(config=model.config)
        ids = torch.tensor([tokens])
        out = model(input_ids=ids, use_cache=True, past_key_values=cache).logits[0]
    return np.asarray(out.float().numpy(), np.float32)


@dataclass
class Taps:
    """What the hooks of one run saw.

    Attributes
    ----------
    arrays : dict
        Capture name (DESIGN's names) -> float32 (n, d_model), router arrays (n, n_experts) or
        (n, n_active), experts int32, ordered by expert id.
    router_margin : float32 (n,)
        Per row, the smallest gap between a chosen expert's selection score and a refused one's,
        over all layers (inf without routers).
    """

    arrays: dict[str, Any]
    router_margin: F32


def _margin(router: Any, raw: torch.Tensor, chosen: torch.Tensor, arch: str) -> torch.Tensor:
    """Per row, the gap between the worst chosen score and the best refused one that was open."""
    bias = getattr(router, "e_score_correction_bias", None)
    score = raw
    if arch in ("deepseek2", "glm4moe"):
        score = raw.sigmoid() + bias if bias is not None else raw.softmax(-1)
    n, n_experts = score.shape
    picked = torch.zeros_like(score, dtype=torch.bool).scatter_(1, chosen.long(), True)
    groups = int(getattr(router, "num_group", None) or 1)
    open_ = torch.ones_like(picked)
    gap = torch.full((n,), float("inf"))
    if groups > 1:
        per = score.view(n, groups, n_experts // groups)
        value = per.max(-1).values if bias is None else per.topk(2, -1)[0].sum(-1)
        best = value.sort(-1, descending=True)
        k = int(router.topk_group)
        gap = best.values[:, k - 1] - best.values[:, k]
        keep = torch.zeros_like(value, dtype=torch.bool).scatter_(1, best.indices[:, :k], True)
        open_ = keep.repeat_interleave(n_experts // groups, 1)
    worst = score.masked_fill(~picked, float("inf")).min(-1).values
    refused = score.masked_fill(picked | ~open_, float("-inf")).max(-1).values
    return torch.minimum(gap, worst - refused)


def captures(model: Any, tokens: list[int], spec: Spec) -> Taps:
    """Run one prompt with hooks on every tap that DESIGN names."""
    arrays: dict[str, Any] = {}
    margins = [torch.full((len(tokens),), float("inf"))]
    handles = []

    def keep(name: str, value: Any) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        arrays[name] = tensor.detach().float().reshape(-1, tensor.shape[-1]).numpy().copy()

    def on_input(module: Any, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda m, args: keep(name, args[0])))

    def on_output(module: Any, name: str) -> None:
        handles.append(module.register_forward_hook(lambda m, args, out: keep(name, out)))

    def on_router(module: Any, name: str) -> None:
        def hook(m: Any, args: Any, out: Any) -> None:
            raw, weights, experts = out
            by_id = experts.argsort(-1)
            arrays[f"{name}.logits"] = raw.float().numpy().copy()
            arrays[f"{name}.experts"] = experts.gather(1, by_id).to(torch.int32).numpy().copy()
            arrays[f"{name}.weights"] = weights.gather(1, by_id).float().numpy().copy()
            margins.append(_margin(m, raw, experts, spec.arch))

        handles.append(module.register_forward_hook(hook))

    body = model.model
    on_output(body.embed_tokens, "embed")
    for i, layer in enumerate(body.layers):
        on_input(layer.input_layernorm, f"blocks.{i}.resid_pre")
        on_output(layer.self_attn, f"blocks.{i}.attn_out")
        on_input(layer.post_attention_layernorm, f"blocks.{i}.resid_mid")
        on_output(layer.mlp, f"blocks.{i}.mlp_out")
        on_output(layer, f"blocks.{i}.resid_post")
        router = getattr(layer.mlp, "router", None) or getattr(layer.mlp, "gate", None)
        if router is not None:
            on_router(router, f"blocks.{i}.router")
    on_output(body.norm, "final_norm")
    try:
        logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return Taps(arrays, torch.stack(margins).min(0).values.numpy())


def greedy(model: Any, tokens: list[int], n: int) -> tuple[list[int], float]:
    """Greedy continuation and the smallest gap between the best and the second logit."""
    run, margin = list(tokens), float("inf")
    for _ in range(n):
        row = logits(model, run)[-1]
        first, second = np.sort(row)[-2:][::-1]
        margin = min(margin, float(first - second))
        run.append(int(row.argmax()))
    return run[len(tokens) :], margin
