"""Record demonstrations by a policy of this project: the states and actions of the episodes that it solves."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.rollouts import Episode, Policy, rollout
from pipeline.tasks.vector import Env, EnvFactory, Transition
from pipeline.utils.atomic import replacing
from pipeline.utils.provenance import write_checksum


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One episode of T steps.

    Attributes:
        seed: of the initial state; with repeat 0, of the policy's noise too.
        state: (T, S) float64, the state before each action. action: (T, A) float32.
        max_score: the best score of the episode.
    """

    seed: int
    state: NDArray[np.float64]
    action: NDArray[np.float32]
    max_score: float


def solved_episodes(policy: Policy, env_factory: EnvFactory, seeds: Iterable[int]) -> list[Demonstration]:
    """Roll ``policy`` out once on every seed and return the successful episodes, by seed.

    All episodes run in this process, because worker processes do not return all states.
    """
    records: dict[int, _Record] = {}
    recorded = replace(
        env_factory,
        make_env=partial(_RecordedEnv, env_factory.make_env, records),
        reset_arguments=partial(_with_seed, env_factory.reset_arguments),
    )
    results = rollout(policy, recorded, [Episode(seed, 0) for seed in seeds])
    return [
        Demonstration(
            result.seed,
            np.stack(records[result.seed].states[:-1]),
            np.stack(records[result.seed].actions).astype(np.float32),
            result.max_score,
        )
        for result in results
        if result.success
    ]


def write_demonstrations(path: Path, episodes: Sequence[Demonstration]) -> None:
    """Write ``episodes`` as npz, atomically, and a checksum beside it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            state=np.concatenate([episode.state for episode in episodes]).astype(np.float32),
            action=np.concatenate([episode.action for episode in episodes]),
            episode_ends=np.cumsum([len(episode.action) for episode in episodes]),
            seed=np.array([episode.seed for episode in episodes]),
            max_score=np.array([episode.max_score for episode in episodes], dtype=np.float32),
        )
    write_checksum(path)


def _with_seed(reset_arguments: Callable[[int], Mapping[str, Any]], seed: int) -> dict[str, Any]:
    return {**reset_arguments(seed), "seed": seed}


class _Record:
    """The states and actions of one episode."""

    def __init__(self) -> None:
        self.states: list[NDArray[np.float64]] = []
        self.actions: list[NDArray[np.floating]] = []


class _RecordedEnv:
    """An environment that adds every state and action to ``records`` under the seed of its episode."""

    def __init__(self, make_env: Callable[[], Env], records: dict[int, _Record]) -> None:
        self._env = make_env()
        self._records = records
        self._record = _Record()

    def reset(self, *, seed: int, **arguments: Any) -> NDArray[np.float64]:
        self._record = self._records[seed] = _Record()
        self._record.states.append(self._env.reset(**arguments))
        return self._record.states[-1]

    def step(self, action: NDArray[np.floating]) -> Transition:
        transition = self._env.step(action)
        self._record.actions.append(action)
        self._record.states.append(transition.observation)
        return transition
