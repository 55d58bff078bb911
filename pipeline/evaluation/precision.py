"""Study the causes of a policy's loss of precision: rollouts in which one of its settings at a time is changed.

A rollout misses the full score for several reasons: the noise of a plan is independent of the previous plan's, the
solve takes few steps, a chunk is executed without feedback, and the field itself errs. Each of the first three is
changed alone, from the same initial states, so that differences are paired.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import run_acting
from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.evaluation.seeds import validation_seeds
from pipeline.settings.schema import EvaluationSettings, PrecisionSettings
from pipeline.tasks.vector import EnvFactory
from pipeline.utils.seeding import derive

FIRST_SEED = 10_000
"""First validation seed used here. Checkpoints and settings were chosen on earlier ones, so those would be biased."""


@dataclass(frozen=True)
class Variation:
    """Settings of a policy's rollout.

    Attributes:
        change: the changed setting in words; empty: none.
        nfe: function evaluations of a solve. n_action_steps: actions executed before the next prediction.
        noise_scale: factor of the noise that a solve starts from. 0 makes the policy deterministic, but from a start
            that never occurs in training: there the noise of d components has a length of about √d.
        held: number of one draw of noise that every solve starts from, a start as in training; None: fresh noise.
    """

    change: str
    nfe: int
    n_action_steps: int
    noise_scale: float = 1.0
    held: int | None = None


def variations(settings: PrecisionSettings, nfe: int, n_action_steps: int, *, flow: bool) -> list[Variation]:
    """List the variations: first no change, then each change alone.

    Args:
        nfe, n_action_steps: the policy's own.
        flow: whether its field was trained by flow matching and so works with any number of evaluations. A field
            fine-tuned through a solve works with that solve only, so it is not solved more finely.
    """
    changed = [
        Variation(f"noise x {scale:g}", nfe, n_action_steps, noise_scale=scale) for scale in settings.noise_scales
    ]
    changed += [
        Variation(f"one noise ({draw + 1})", nfe, n_action_steps, held=draw) for draw in range(settings.held_noises)
    ]
    changed.append(Variation(f"{settings.n_action_steps} actions a plan", nfe, settings.n_action_steps))
    if flow and settings.fine_nfe > nfe:
        changed.append(Variation(f"NFE {settings.fine_nfe}", settings.fine_nfe, n_action_steps))
    return [Variation("", nfe, n_action_steps), *changed]


class Varied:
    """A flow policy that acts and samples with the settings of a ``Variation``."""

    def __init__(self, policy: FlowPolicy, variation: Variation) -> None:
        self._policy = policy
        self._acting = policy.acting(variation.nfe)
        self._noise_scale = variation.noise_scale
        self._held: Tensor | None = None
        if variation.held is not None:
            generator = torch.Generator().manual_seed(derive(variation.held, "held noise"))
            self._held = torch.randn(policy.horizon, policy.action_dim, generator=generator)
        self.n_action_steps = variation.n_action_steps
        self.n_obs_steps = policy.n_obs_steps
        self.horizon = policy.horizon
        self.noise_shape = policy.noise_shape(variation.nfe)

    @property
    def device(self) -> torch.device:
        return self._policy.device

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Act as ``FlowPolicy.acting`` does, from the varied noise."""
        return self._acting.act(observations, self._varied(torch.from_numpy(noise)).numpy())

    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Sample as ``FlowPolicy.sample`` does, from the varied noise."""
        return self._policy.sample(condition, self._varied(noise), nfe)

    def _varied(self, noise: Tensor) -> Tensor:
        return noise * self._noise_scale if self._held is None else self._held.to(noise).expand_as(noise)


def run_varied(
    policy: Varied, env_factory: EnvFactory, seeds: int, settings: EvaluationSettings, journal: Path
) -> list[EpisodeResult]:
    """Run one episode on each of ``seeds`` validation seeds from number ``FIRST_SEED`` on; resume from ``journal``."""
    chosen = validation_seeds(FIRST_SEED + seeds)[FIRST_SEED:]
    return run_acting(policy, env_factory, chosen, settings, journal=journal)
