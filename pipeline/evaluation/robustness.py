"""Policies with noise on their observations or on their actions, for rollouts."""

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.policy import FlowPolicy
from pipeline.settings.schema import Disturbance


class Disturbed:
    """A policy at ``nfe`` evaluations under one disturbance, in the form that rollouts call.

    A plan's disturbance comes from a generator keyed by the plan's initial noise. So it depends only on (seed, repeat)
    and is the same for every policy, and the initial noise is the same as without a disturbance.

    Args:
        disturbance: ``observation_noise``: on each component of the encoded, normalised observations; ``action_noise``:
            on each normalised action. Both are fresh at every plan.
        strength: its standard deviation; the data span [−1, 1].
    """

    def __init__(self, policy: FlowPolicy, nfe: int, disturbance: Disturbance, strength: float) -> None:
        policy.acting(nfe)  # raises if the policy cannot take so many evaluations
        self._policy = policy
        self._nfe = nfe
        self._disturbance = disturbance
        self._strength = strength
        self.n_obs_steps = policy.n_obs_steps
        self.horizon = policy.horizon
        self.n_action_steps = policy.n_action_steps
        self.noise_shape = policy.noise_shape(nfe)

    @torch.inference_mode()
    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Raw states (B, n_obs_steps, S), noise (B, horizon, A) → actions, shaped as the noise."""
        x0 = torch.from_numpy(noise).to(self._policy.device)
        condition = self._policy.condition(observations)
        if self._disturbance == "observation_noise":
            condition = condition + self._drawn(noise, condition)
        actions = self._policy.sample(condition, x0, self._nfe)
        if self._disturbance == "action_noise":
            actions = actions + self._drawn(noise, actions)
        return self._policy.action_normalizer.denormalize(actions).cpu().numpy()

    def _drawn(self, noise: np.ndarray, like: Tensor) -> Tensor:
        """Draw a disturbance shaped as ``like``, row by row."""
        keys = np.ascontiguousarray(noise.reshape(len(noise), -1)).view(np.uint32)
        rows = [np.random.default_rng(key).standard_normal(like.shape[1:], dtype=np.float32) for key in keys]
        return self._strength * torch.from_numpy(np.stack(rows)).to(like)


def perturbation(disturbance: str, strength: float) -> str:
    """The name of a disturbance in episode files, such as ``action_noise=0.1``."""
    return f"{disturbance}={strength:g}"
