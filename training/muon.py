"""Muon with AdamW beside it: the optimiser of the demo model.

Matrices (and stacks of expert matrices) get momentum whose singular values are all pulled to one by
a Newton-Schulz iteration; embeddings, the router and the norms' gains get AdamW. Update size as in
arXiv:2502.16982, eq. 4, so that both share one learning rate. Coefficients of the quintic
iteration: Jordan et al., "Muon", 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(m: Tensor, *, steps: int = 5) -> Tensor:
    """Return m (..., rows, columns) with its singular values pulled near one."""
    x = m.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon:
    """Steps every parameter of a model; `lr` is set from outside before each step."""

    def __init__(
        self, model: nn.Module, *, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        named = list(model.named_parameters())
        self.matrices = [p for n, p in named if p.ndim >= 2 and not n.endswith(("embed", "router"))]
        rest = [p for n, p in named if p.ndim >= 2 and n.endswith(("embed", "router"))]
        gains = [p for _, p in named if p.ndim < 2]
        groups = [
            {"params": rest, "weight_decay": weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers = [torch.zeros_like(p) for p in self.matrices]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Apply one update of size `lr` and drop the gradients."""
        for p, buffer in zip(self.matrices, self.buffers, strict=True):
            if p.grad is None:
                continue
            buffer.lerp_(p.grad, 1 - self.momentum)
            update = orthogonalise(p.grad.lerp_(buffer, self.momentum))  # Nesterov
            p.mul_(1 - lr * self.weight_decay)
            p.add_(update, alpha=-lr * 0.2 * max(p.shape[-2:]) ** 0.5)
            p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.adam.zero_grad()

    def state_dict(self) -> dict[str, object]:
        """Everything a later run needs to go on from here."""
        return {"adam": self.adam.state_dict(), "buffers": self.buffers}

    def load_state_dict(self, state: dict) -> None:  # type: ignore[type-arg]
        """Take over what `state_dict` returned."""
        self.adam.load_state_dict(state["adam"])
        for mine, theirs in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(theirs)
