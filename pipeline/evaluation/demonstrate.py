"""Demonstrations made by a policy of our own: the episodes that it solves, kept with what was seen and done."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.rollouts import BLOCK, Episode, EpisodeResult, Policy, rollout
from pipeline.tasks.vector import Env, Evaluation, Transition


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One episode of T steps.

    Attributes:
        seed: of the initial state; with repeat 0, of the policy's noise too.
        state: (T, S) float64, the state seen before each action. action: (T, A) float32.
        max_score: the best score of the episode.
    """

    seed: int
    state: NDArray[np.float64]
    action: NDArray[np.float32]
    max_score: float


def solved_episodes(
    policy: Policy, evaluation: Evaluation, seeds: Iterable[int], *, workers: int, batch: int
) -> Iterator[Demonstration]:
    """Roll ``policy`` out once on every seed and yield the successful episodes, by seed.

    The rollout itself keeps only scores, so solved episodes are run again, one by one, with a recorder: an episode
    depends on its seed alone, and comes out the same.
    """
    episodes = [Episode(seed, 0) for seed in seeds]
    for result in rollout(policy, evaluation, episodes, batch=batch, workers=workers):
        if result.success:
            yield _record(policy, evaluation, result)


def _record(policy: Policy, evaluation: Evaluation, result: EpisodeResult) -> Demonstration:
    recorder = _Recorder(evaluation.make_env())
    recorded = replace(evaluation, make_env=lambda: recorder)
    (again,) = rollout(policy, recorded, [result.episode], block=BLOCK, progress=False)
    if again != result:
        raise RuntimeError(f"{result.episode} came out differently when run again: {again} and {result}")
    return Demonstration(
        result.seed, np.stack(recorder.states[:-1]), np.stack(recorder.actions).astype(np.float32), result.max_score
    )


class _Recorder:
    """An environment that keeps every state and action."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self.states: list[NDArray[np.float64]] = []
        self.actions: list[NDArray[np.floating]] = []

    def reset(self, **arguments: Any) -> NDArray[np.float64]:
        self.states.append(self._env.reset(**arguments))
        return self.states[-1]

    def step(self, action: NDArray[np.floating]) -> Transition:
        transition = self._env.step(action)
        self.actions.append(action)
        self.states.append(transition.observation)
        return transition
