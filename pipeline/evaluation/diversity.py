"""Measure the diversity and the error of samples on held-out data, which show a collapse that a score can hide."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.nets.modes import evaluating
from pipeline.utils.seeding import derive

_CONDITIONS = 16
"""Held-out observations in one call of the sampler."""


class Sampler(Protocol):
    """A model that draws samples for conditions, such as a ``FlowPolicy``."""

    @property
    def device(self) -> torch.device: ...

    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Draw samples shaped as the noise (B · K, …), in ``nfe`` evaluations.

        K successive samples are for the same row of the condition (B, C).
        """


@dataclass(frozen=True)
class Diversity:
    """Diversity and errors of samples, in normalised action units (data span [−1, 1]).

    Attributes:
        spread: standard deviation over the samples of one observation, root mean square over observations and
            components.
        best_of_k: root mean square error of the best of the samples; large if a mode was lost.
        reconstruction_error: root mean square error of a single sample.
    """

    spread: float
    best_of_k: float
    reconstruction_error: float


@torch.no_grad()
def measure_diversity(
    policy: Sampler, condition: Tensor, action: Tensor, nfe: int, *, samples: int = 16, seed: int = 0
) -> Diversity:
    """Draw ``samples`` chunks for each held-out observation and compare them with each other and with the data.

    Args:
        condition: (B, C), encoded held-out observations.
        action: (B, Tp, A) or any shape (B, …), their normalised actions.
        seed: of the noise; the same for every model, so that models are compared on the same draws.
    """
    generator = torch.Generator().manual_seed(derive(seed, "diversity"))
    noise = torch.randn(samples, *action.shape, generator=generator, dtype=action.dtype).to(action.device)
    parts = zip(condition.split(_CONDITIONS), noise.split(_CONDITIONS, dim=1), strict=True)
    with evaluating(policy):
        drawn = torch.cat(
            [policy.sample(c, x0.transpose(0, 1).flatten(0, 1), nfe).unflatten(0, (len(c), samples)) for c, x0 in parts]
        )  # (B, K, Tp, A)
    error = (drawn - action[:, None]).square().flatten(2).mean(-1)  # (B, K)
    return Diversity(
        spread=drawn.var(dim=1).mean().sqrt().item(),
        best_of_k=error.amin(1).mean().sqrt().item(),
        reconstruction_error=error.mean().sqrt().item(),
    )
