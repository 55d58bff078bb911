"""Couplings: how noise x0 is paired with data x1.

In fine-tuning the coupling is the method. Loss (6) of the paper is minimised by the conditional mean E[x1 | x0, c];
with x0 drawn independently of x1 that is E[x1 | c], and the modes collapse. A coupling that depends on what the model
already makes of x0 keeps them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Reconstruct = Callable[[Tensor, Tensor], Tensor]
"""φ_N(x0, c): the model's own N-step solve, (B, …) and (B, C) → (B, …)."""


@dataclass(frozen=True)
class Source:
    """Where noise comes from: standard normal numbers of one generator, moved to the data's device."""

    generator: torch.Generator

    def like(self, x: Tensor) -> Tensor:
        """Standard normal noise shaped as ``x``."""
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)


Coupling = Callable[[Tensor, Tensor, Source, Reconstruct], Tensor]
"""(x1, condition, source, reconstruct) → x0 paired row by row with x1."""


def independent(x1: Tensor, condition: Tensor, source: Source, reconstruct: Reconstruct) -> Tensor:
    """x0 drawn without a look at x1: the product coupling, as loss (6) is printed."""
    del condition, reconstruct
    return source.like(x1)


def minibatch_ot(x1: Tensor, condition: Tensor, source: Source, reconstruct: Reconstruct) -> Tensor:
    """A batch of noise, permuted so that Σ‖x0 − x1‖² is least (OT-CFM, Tong et al. 2024; Pooladian et al. 2023).

    The assignment is solved exactly and is always a permutation: drawing pairs from a transport plan with replacement,
    as is common, duplicates some samples and loses others. The cost ignores the condition, so that within one
    observation the noise is no longer standard normal.

    Raises:
        ValueError: the data hold NaN or infinity, for which no assignment exists.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that no other coupling needs

    del condition, reconstruct
    x0 = source.like(x1)
    a, b = x0.flatten(1).double(), x1.flatten(1).double()
    # −2⟨a, b⟩ has the same best permutation as ‖a − b‖²: the squared norms add up to the same for all of them
    cost = -(a @ b.T).cpu().numpy()
    rows, columns = linear_sum_assignment(cost)
    order = torch.empty(len(x1), dtype=torch.long)
    order[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return x0[order.to(x0.device)]


def nearest(candidates: int, chunk: int = 4096) -> Coupling:
    """Of ``candidates`` noises for each datum, the one whose reconstruction lies nearest to it.

    Implicit maximum likelihood estimation (Li & Malik 2018) on the model's own solve: every datum pulls the sample that
    is already closest, so that no datum is forgotten and no sample is pulled to the mean. With one candidate it equals
    ``independent``.

    Args:
        candidates: K, at least 1.
        chunk: rows solved at once; bounds the memory of the search whatever the batch and K.
    """

    def pair(x1: Tensor, condition: Tensor, source: Source, reconstruct: Reconstruct) -> Tensor:
        best = source.like(x1)
        if candidates == 1:
            return best
        size = max(1, chunk // candidates)
        noises = torch.stack([best, *(source.like(x1) for _ in range(candidates - 1))], dim=1)  # (B, K, …)
        parts = []
        for x0, target, c in zip(noises.split(size), x1.split(size), condition.split(size), strict=True):
            with torch.no_grad():
                made = reconstruct(x0.flatten(0, 1), c.repeat_interleave(candidates, dim=0))
            error = (made.view_as(x0) - target[:, None]).flatten(2).square().sum(-1)
            parts.append(x0[torch.arange(len(x0)), error.argmin(1)])
        return torch.cat(parts)

    return pair


def make_coupling(kind: str, candidates: int) -> Coupling:
    """The coupling named ``kind``; ``candidates`` counts for ``nearest`` alone."""
    return {"independent": independent, "minibatch_ot": minibatch_ot, "nearest": nearest(candidates)}[kind]
