"""Rollouts in which a policy sees its surroundings through noise, or its actions are carried out with noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.config import Disturbance, EvaluationSettings
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import Episode, EpisodeResult, rollout
from pipeline.tasks.registry import TASKS


class Disturbed:
    """A policy at ``nfe`` evaluations under one disturbance, as rollouts call it.

    It asks for more noise than the policy needs, and disturbs with the rest, so that an episode's disturbance is its
    (seed, repeat)'s alone and the same for every policy.

    Args:
        disturbance: ``observation_noise``: on each component of the encoded, normalised observations; ``action_noise``:
            on each normalised action. Either is fresh at every plan.
        strength: its standard deviation; the data span [−1, 1].
    """

    def __init__(self, policy: FlowPolicy, nfe: int, disturbance: Disturbance, strength: float) -> None:
        policy.acting(nfe)  # says if it cannot
        self._policy = policy.eval()
        self._nfe = nfe
        self._disturbance = disturbance
        self._strength = strength
        self._own = policy.prediction_horizon
        observed = policy.observation_horizon * len(policy.observation_normalizer.offset)
        self.observation_horizon = policy.observation_horizon
        self.prediction_horizon = self._own + max(self._own, -(-observed // policy.action_dim))
        self.chunk = policy.chunk
        self.action_dim = policy.action_dim

    @torch.inference_mode()
    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Raw states (B, observation_horizon, S), noise (B, prediction_horizon, A) → its actions (B, Tp, A)."""
        drawn = torch.from_numpy(noise).to(self._policy.device)
        own, more = drawn[:, : self._own], self._strength * drawn[:, self._own :]
        condition = self._policy.condition(observations)
        if self._disturbance == "observation_noise":
            condition = condition + more.flatten(1)[:, : condition.shape[1]]
        actions = self._policy.sample(condition, own, self._nfe)
        if self._disturbance == "action_noise":
            actions = actions + more[:, : self._own]
        return self._policy.action_normalizer.denormalize(actions).cpu().numpy()


def run_disturbed(
    policy: Disturbed, task: str, evaluation: str, seeds: Sequence[int], settings: EvaluationSettings, journal: Path
) -> list[EpisodeResult]:
    """One episode for each seed; resumes from ``journal``."""
    return rollout(
        policy,
        TASKS[task].evaluation(evaluation, settings.reset_order, settings.max_steps),  # type: ignore[arg-type]
        [Episode(seed, 0) for seed in seeds],
        batch=settings.batch,
        block=settings.block,
        workers=settings.workers,
        journal=journal,
    )
