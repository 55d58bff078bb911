"""Measure whether fine-tuning collapses the diversity of a model's samples, which a rollout score alone can hide."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.evaluation.diversity import Diversity, Sampler, measure_diversity
from pipeline.utils.seeding import derive

REFERENCE_NFE = 16
"""The base model's spread is taken at this many evaluations, where its samples follow the data: at one evaluation flow
matching predicts the mean, whose spread is no yardstick."""

_WINDOWS = 256


@dataclass(frozen=True)
class DiversityReading:
    """Diversity of a model's samples on held-out data, relative to the base model's.

    Attributes:
        spread_ratio: spread of the model's samples over the base model's at ``REFERENCE_NFE``; 1 keeps all diversity, 0
            is one answer to each observation.
        best_of_k_ratio, reconstruction_ratio: those errors over the base model's at ``REFERENCE_NFE``; the first grows
            where a mode is lost.
        diversity: spread, best-of-K and reconstruction error themselves, in normalised action units.
    """

    spread_ratio: float
    best_of_k_ratio: float
    reconstruction_ratio: float
    diversity: Diversity


class HeldOut(Protocol):
    """Data never trained on, such as that of ``PreparedData``: (W, C) and (W, …)."""

    @property
    def held_out_condition(self) -> Tensor: ...

    @property
    def held_out_action(self) -> Tensor: ...


class DiversityMonitor:
    """Compares models with the base model on the same held-out observations and the same noise.

    Args:
        base: the model that fine-tuning starts from. data: its held-out windows are used, at most 256 of them.
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
