"""A small DeepSeek-shaped language model in torch: latent attention and sigmoid-routed experts.

The forward pass is that of GGUF's `deepseek2` architecture, so that the exported file computes the
same function: MLA from arXiv:2405.04434 section 2.1, routing with a selection-only bias and its
balancing from arXiv:2412.19437 section 2.1.2 (eq. 12-16). Training only: no KV cache, no
generation; Moesaic does those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

YARN_LOG_MULTIPLIER = 0.1  # deepseek2: the softmax scale grows by (1 + 0.1 ln factor) squared


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the tensors' shapes; rows are multiples of 256 for the K-quants."""

    vocab: int = 2048
    n_layers: int = 5
    n_dense: int = 1  # leading layers with a plain MLP
    d_model: int = 256
    d_ff_dense: int = 768
    d_ff: int = 256  # of one expert
    n_experts: int = 8
    n_active: int = 2
    n_heads: int = 4
    q_lora: int = 128
    kv_lora: int = 128
    d_nope: int = 64
    d_rope: int = 32
    d_v: int = 64
    n_train: int = 256  # the windows of training
    rope_factor: float = 2.0  # YaRN stretches them to n_ctx, without further training
    rope_base: float = 10000.0
    rms_eps: float = 1e-5
    routed_scale: float = 2.0

    @property
    def n_ctx(self) -> int:
        """Longest sequence of the finished model."""
        return int(self.n_train * self.rope_factor)


def _weight(*shape: int, std: float = 0.02) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * std)


class RmsNorm(nn.Module):
    """Root-mean-square norm with a learned gain (d,)."""

    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_table(s: Shape, n: int, *, stretched: bool) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (n, d_rope / 2); stretched: by YaRN, arXiv:2309.00071."""
    pairs = torch.arange(s.d_rope // 2, dtype=torch.float64)
    speed = s.rope_base ** (-2 * pairs / s.d_rope)
    if stretched:
        # Pairs that turn over 32 times in a training window stay; those below one turn slow down.
        turns = [math.log(s.n_train / (2 * math.pi * t)) / math.log(s.rope_base) for t in (32, 1)]
        low, high = (s.d_rope / 2 * t for t in turns)
        low, high = max(math.floor(low), 0), min(math.ceil(high), s.d_rope - 1)
        slow = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
        speed = speed * (1 - slow) + speed / s.rope_factor * slow
    angle = torch.outer(torch.arange(n, dtype=torch.float64), speed)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs (2i, 2i + 1) of the last axis; x (batch, n, heads, d_rope)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, rows: int = 128) -> Tensor:
    """Softmax attention, (heads, n, d) each; sliced, which beats torch's fused kernel on a CPU."""
    n = q.shape[1]
    mask = torch.full((n, n), float("-inf"), dtype=q.dtype).triu(1)
    out = []
    for at in range(0, n, rows):
        end = min(at + rows, n)
        scores = torch.baddbmm(
            mask[at:end, :end], q[:, at:end], k[:, :end].transpose(1, 2), alpha=scale
        )
        out.append(torch.bmm(scores.softmax(-1), v[:, :end]))
    return torch.cat(out, 1)


class Attention(nn.Module):
    """MLA in its decompressed form; `kv_b` holds per head [k_nope | v] rows over the latent."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_a = _weight(s.q_lora, s.d_model)
        self.q_a_norm = RmsNorm(s.q_lora, s.rms_eps)
        self.q_b = _weight(s.n_heads * (s.d_nope + s.d_rope), s.q_lora)
        self.kv_a = _weight(s.kv_lora + s.d_rope, s.d_model)
        self.kv_a_norm = RmsNorm(s.kv_lora, s.rms_eps)
        self.kv_b = _weight(s.n_heads * (s.d_nope + s.d_v), s.kv_lora)
        self.out = _weight(s.d_model, s.n_heads * s.d_v, std=0.02 / (2 * s.n_layers) ** 0.5)
        self.scale = (s.d_nope + s.d_rope) ** -0.5

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s = self.s
        b, n, _ = x.shape
        q = F.linear(self.q_a_norm(F.linear(x, self.q_a)), self.q_b).view(b, n, s.n_heads, -1)
        q_nope, q_pe = q.split((s.d_nope, s.d_rope), -1)
        latent, k_pe = F.linear(x, self.kv_a).split((s.kv_lora, s.d_rope), -1)
        kv = F.linear(self.kv_a_norm(latent), self.kv_b).view(b, n, s.n_heads, -1)
        k_nope, v = kv.split((s.d_nope, s.d_v), -1)
        q = torch.cat((q_nope, rotate(q_pe, cos, sin)), -1)
        k_pe = rotate(k_pe[:, :, None], cos, sin).expand(b, n, s.n_heads, s.d_rope)
        k = torch.cat((k_nope, k_pe), -1)
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        o = causal_attention(q, k, v, scale=self.scale)
        o = o.view(b, s.n_heads, n, s.d_v).transpose(1, 2).reshape(b, n, -1)
        return F.linear(o, self.out)


class Mlp(nn.Module):
    """silu(gate x) * (up x), then down; gate and up are one matrix here and two in the file."""

    def __init__(self, s: Shape, d_ff: int) -> None:
        super().__init__()
        self.gate_up = _weight(2 * d_ff, s.d_model)
        self.down = _weight(s.d_model, d_ff, std=0.02 / (2 * s.n_layers) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class Moe(nn.Module):
    """One shared expert, and per token the `n_active` experts with the highest sigmoid + bias."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.shared = Mlp(s, s.d_ff)
        self.router = _weight(s.n_experts, s.d_model)
        self.gate_up = _weight(s.n_experts, 2 * s.d_ff, s.d_model)
        self.down = _weight(s.n_experts, s.d_model, s.d_ff, std=0.02 / (2 * s.n_layers) ** 0.5)
        self.register_buffer("bias", torch.zeros(s.n_experts))
        self.register_buffer("load", torch.zeros(s.n_experts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        s = self.s
        flat = x.reshape(-1, s.d_model)
        with torch.autocast("cpu", enabled=False):  # the router is float32, as in the file
            p = torch.sigmoid(F.linear(flat.float(), self.router))
        experts = (p.detach() + self.bias).topk(s.n_active, -1).indices  # (n, n_active)
        w = p.gather(-1, experts)
        w = (s.routed_scale * w / w.sum(-1, keepdim=True)).to(x.dtype)
        # Rows sorted by expert, so that each expert is one dense product.
        slots = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=s.n_experts)
        if self.training:
            self.load += counts
        rows = slots // s.n_active
        parts = []
        for e, part in enumerate(flat.index_select(0, rows).split(counts.tolist())):
            gate, up = F.linear(part, self.gate_up[e]).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, self.down[e]))
        y = torch.cat(parts) * w.flatten()[slots, None]
        return (self.shared(flat).index_add(0, rows, y.to(x.dtype))).view_as(x)

    @torch.no_grad()
    def balance(self, rate: float) -> float:
        """Nudge every expert's bias against its load; returns the highest load over the mean."""
        mean = self.load.mean()
        busiest = float(self.load.max() / mean)
        self.bias += rate * torch.sign(mean - self.load)
        self.load.zero_()
        return busiest


class Block(nn.Module):
    """One layer: x += attention(norm(x)); x += mlp(norm(x)); dropout (training only) on both."""

    def __init__(self, s: Shape, layer: int, dropout: float) -> None:
        super().__init__()
        self.attn_norm = RmsNorm(s.d_model, s.rms_eps)
        self.attn = Attention(s)
        self.ffn_norm = RmsNorm(s.d_model, s.rms_eps)
        self.ffn = Mlp(s, s.d_ff_dense) if layer < s.n_dense else Moe(s)
        self.dropout = dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + F.dropout(self.attn(self.attn_norm(x), cos, sin), self.dropout, self.training)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), self.dropout, self.training)


class Model(nn.Module):
    """Token ids (batch, n) -> logits (batch, n, vocab). Embedding and head are one matrix."""

    def __init__(self, s: Shape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.s = s
        self.embed = _weight(s.vocab, s.d_model)
        self.dropout = dropout
        self.blocks = nn.ModuleList(Block(s, i, dropout) for i in range(s.n_layers))
        self.norm = RmsNorm(s.d_model, s.rms_eps)
        cos, sin = rope_table(s, s.n_ctx, stretched=False)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def stretch(self) -> None:
        """Turn the trained model into the shipped one: YaRN's angles and its sharper softmax."""
        self.cos, self.sin = rope_table(self.s, self.s.n_ctx, stretched=True)
        for block in self.blocks:
            block.attn.scale *= (1 + YARN_LOG_MULTIPLIER * math.log(self.s.rope_factor)) ** 2

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = F.embedding(tokens, self.embed)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n])
        return F.linear(self.norm(x), self.embed)

    def routers(self) -> list[Moe]:
        """Return the mixture layers, in order."""
        return [b.ffn for b in self.blocks if isinstance(b.ffn, Moe)]
