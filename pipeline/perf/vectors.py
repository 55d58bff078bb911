"""Run episodes in gymnasium's vector environments, as evaluation scripts do: the peer of this project's rollouts."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from numpy.typing import NDArray

from pipeline.evaluation.rollouts import EpisodeResult, Policy
from pipeline.tasks.pusht.env import initial_state
from pipeline.tasks.vector import Env, EnvFactory

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]
Vector = Literal["AsyncVectorEnv", "SyncVectorEnv"]
VECTORS: dict[Vector, Any] = {"AsyncVectorEnv": AsyncVectorEnv, "SyncVectorEnv": SyncVectorEnv}
LIVE = 50
"""Environments per vector, LeRobot's default for evaluation."""


class Stepped(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """A simulated task with the interface of a gymnasium environment."""

    def __init__(self, make: Callable[[], Env], env_factory: EnvFactory, observation_dim: int, action_dim: int) -> None:
        self.env = make()
        self.env_factory = env_factory
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (action_dim,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start the episode of ``seed``; of seed 0 if the vector continues after an episode's end."""
        del options
        return self.env.reset(**self.env_factory.reset_arguments(seed or 0)), {}

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Make one control step; ``info`` has ``is_success`` as in gym-pusht."""
        observation, score, success, done = self.env.step(action)
        return observation, score, success, done and not success, {"is_success": success}


class SeededPushT(gymnasium.Wrapper[Any, Any, Any, Any]):
    """gym-pusht, except that a seed draws diffusion_policy's initial state."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the episode of ``seed``; of seed 0 if the vector continues after an episode's end."""
        del options
        return self.env.reset(options={"reset_to_state": initial_state("b", seed or 0)})


def make_pusht() -> gymnasium.Env[Any, Any]:
    """Make gym-pusht by its registered name, with its wrappers and limit of 300 steps."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import gym_pusht  # noqa: F401  (registers the environment)

    return SeededPushT(gymnasium.make("gym_pusht/PushT-v0", obs_type="state"))


def vectorised(
    policy: Policy, make: MakeEnv, seeds: Sequence[int], max_steps: int, vector: Vector
) -> list[EpisodeResult]:
    """Run episodes in batches of ``LIVE``: all environments step together, with one call of the policy per chunk."""
    results: list[EpisodeResult] = []
    for start in range(0, len(seeds), LIVE):
        batch = list(seeds[start : start + LIVE])
        with closing(VECTORS[vector]([make] * len(batch))) as environments:
            results += _lockstep(policy, environments, batch, max_steps)
    return results


def _lockstep(policy: Policy, environments: Any, seeds: Sequence[int], max_steps: int) -> list[EpisodeResult]:
    observation, _ = environments.reset(seed=list(seeds))
    history = deque([observation.copy()] * policy.n_obs_steps, maxlen=policy.n_obs_steps)
    generators = [np.random.default_rng([seed, 0]) for seed in seeds]
    scores: list[list[float]] = [[] for _ in seeds]
    success = np.zeros(len(seeds), dtype=bool)
    done = np.zeros(len(seeds), dtype=bool)
    plan: deque[NDArray[np.float32]] = deque()
    for _ in range(max_steps):
        if not plan:
            noise = np.stack([g.standard_normal(policy.noise_shape, dtype=np.float32) for g in generators])
            observed = np.stack(history, axis=1).astype(np.float32)
            plan.extend(policy.act(observed, noise)[:, : policy.n_action_steps].swapaxes(0, 1))
        observation, reward, terminated, truncated, info = environments.step(plan.popleft())
        history.append(observation.copy())
        for i in np.flatnonzero(~done):
            scores[i].append(float(reward[i]))
        success |= ~done & info.get("is_success", np.zeros_like(success))
        done |= terminated | truncated
        if done.all():
            break
    rows = zip(seeds, scores, success.tolist(), strict=True)
    return [EpisodeResult(seed, 0, kept[-1], max(kept), solved, len(kept)) for seed, kept, solved in rows]
