"""Where a policy's precision is lost: rollouts in which one thing at a time is not as the policy was made for.

A rollout falls short of full score for several reasons at once. The noise of one re-plan knows nothing of the one
before, the solve takes few steps, a chunk is carried out blindly, and the field itself errs. Each is changed alone, on
the same initial states and the same noise, so that differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, device

from pipeline.config import EvaluationSettings, PrecisionSettings
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import validation_seeds
from pipeline.evaluation.rollouts import Episode, EpisodeResult, Policy, rollout
from pipeline.tasks.registry import TASKS


@dataclass(frozen=True)
class Variation:
    """How a policy acts.

    Attributes:
        change: what is not as the policy was made for, in words; empty: nothing.
        nfe: function evaluations of a solve. noise_scale: factor of the noise that it starts from; 0 makes the policy
            deterministic. chunk: actions carried out before it predicts again.
    """

    change: str
    nfe: int
    noise_scale: float
    chunk: int


def variations(settings: PrecisionSettings, nfe: int, chunk: int, *, flow: bool) -> list[Variation]:
    """Nothing changed, then each change alone, then all of them.

    Args:
        nfe, chunk: that the policy was made for.
        flow: whether its field was trained by flow matching and so is good for any number of evaluations; one
            fine-tuned through a solve is good for that solve, and is not solved more finely.
    """
    as_made = Variation("", nfe, 1.0, chunk)
    changed = [Variation(f"noise x {scale:g}", nfe, scale, chunk) for scale in settings.noise_scales]
    changed.append(Variation(f"{settings.chunk} actions a plan", nfe, 1.0, settings.chunk))
    if flow and settings.fine_nfe > nfe:
        changed.append(Variation(f"NFE {settings.fine_nfe}", settings.fine_nfe, 1.0, chunk))
    calmest = min(settings.noise_scales)
    finest = max(variation.nfe for variation in changed)
    return [as_made, *changed, Variation("all of these", finest, calmest, settings.chunk)]


class Varied:
    """A flow policy as a ``Variation`` has it act, and draw samples."""

    def __init__(self, policy: FlowPolicy, variation: Variation) -> None:
        self._policy = policy
        self._acting: Policy = policy.acting(variation.nfe)
        self._noise_scale = variation.noise_scale
        self.chunk = variation.chunk
        self.observation_horizon = policy.observation_horizon
        self.prediction_horizon = policy.prediction_horizon
        self.action_dim = policy.action_dim

    @property
    def device(self) -> device:
        return self._policy.device

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """As ``FlowPolicy.acting``, from scaled noise."""
        return self._acting.act(observations, noise * np.float32(self._noise_scale))

    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """As ``FlowPolicy.sample``, from scaled noise."""
        return self._policy.sample(condition, noise * self._noise_scale, nfe)


def run_varied(
    policy: Varied, task: str, evaluation: str, seeds: int, settings: EvaluationSettings, journal: Path
) -> Sequence[EpisodeResult]:
    """One episode for each of so many validation seeds; resumes from ``journal``."""
    return rollout(
        policy,
        TASKS[task].evaluation(evaluation, settings.reset_order, settings.max_steps),  # type: ignore[arg-type]
        [Episode(seed, 0) for seed in validation_seeds(seeds)],
        batch=settings.batch,
        block=settings.block,
        workers=settings.workers,
        journal=journal,
    )
