"""Measure whether fine-tuning collapses the diversity of a model's samples, since rollout scores can hide it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.evaluation.diversity import Diversity, Sampler, measure_diversity
from pipeline.utils.seeding import derive

REFERENCE_NFE = 16
"""Number of evaluations at which the base model's spread is measured: its samples follow the data there. At one
evaluation flow matching predicts the mean, whose spread is no reference."""

_WINDOWS = 256


@dataclass(frozen=True)
class DiversityReading:
    """Diversity of a model's samples on held-out data, relative to the base model's.

    Attributes:
        spread_ratio: spread of the samples over the base model's at ``REFERENCE_NFE``; 1: all diversity is kept, 0: the
            samples of an observation are equal.
        best_of_k_ratio, reconstruction_ratio: those errors over the base model's at ``REFERENCE_NFE``; the first grows
            if a mode is lost.
        diversity: spread, best-of-K and reconstruction error themselves, in normalised action units.
    """

    spread_ratio: float
    best_of_k_ratio: float
    reconstruction_ratio: float
    diversity: Diversity


class HeldOut(Protocol):
    """Held-out data, such as that of ``PreparedData``: (W, C) and (W, …)."""

    @property
    def held_out_condition(self) -> Tensor: ...

    @property
    def held_out_action(self) -> Tensor: ...


class DiversityMonitor:
    """Comparison of models with the base model on the same held-out observations and noise.

    Args:
        base: the model before fine-tuning. data: at most 256 of its held-out windows are used.
        seed: of the choice of windows and the noise.
    """

    def __init__(self, base: Sampler, data: HeldOut, seed: int) -> None:
        generator = torch.Generator().manual_seed(derive(seed, "guard windows"))
        rows = torch.randperm(len(data.held_out_action), generator=generator)[:_WINDOWS]
        self._condition: Tensor = data.held_out_condition[rows]
        self._action: Tensor = data.held_out_action[rows]
        self._seed = seed
        self._base = self._diversity(base, REFERENCE_NFE)

    def measure(self, policy: Sampler, nfe: int) -> DiversityReading:
        """Measure ``policy`` at ``nfe`` evaluations."""
        diversity = self._diversity(policy, nfe)
        base = self._base
        return DiversityReading(
            diversity.spread / base.spread,
            diversity.best_of_k / base.best_of_k,
            diversity.reconstruction_error / base.reconstruction_error,
            diversity,
        )

    def _diversity(self, policy: Sampler, nfe: int) -> Diversity:
        condition, action = self._condition.to(policy.device), self._action.to(policy.device)
        return measure_diversity(policy, condition, action, nfe, seed=self._seed)
