"""Record short animations of single episodes, replayed exactly as in the rollout."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import imageio.v3 as iio
import numpy as np

from pipeline.evaluation.rollouts import POLICY_BATCH_SIZE, Episode, EpisodeResult, Policy, rollout
from pipeline.tasks.vector import Env, EnvFactory, Transition
from pipeline.utils.atomic import replacing

STEPS_PER_FRAME = 2
FRAME_MILLISECONDS = 100


class Exemplars(NamedTuple):
    """Results of three episodes to show."""

    best: EpisodeResult
    median: EpisodeResult
    worst: EpisodeResult


def best_median_worst(results: Sequence[EpisodeResult]) -> Exemplars:
    """Choose three episodes, ranked by maximum score, then fewest steps, then lowest (seed, repeat).

    ``results`` must not be empty.
    """
    ranked = sorted(results, key=lambda result: (-result.max_score, result.steps, result.episode))
    return Exemplars(ranked[0], ranked[len(ranked) // 2], ranked[-1])


def record_videos(
    policy: Policy,
    env_factory: EnvFactory,
    videos: Sequence[tuple[Episode, Path]],
    *,
    policy_batch_size: int = POLICY_BATCH_SIZE,
) -> list[EpisodeResult]:
    """Replay episodes and write each as an animated gif, one frame for every second control step.

    The environments of ``env_factory`` must have ``render() -> (H, W, 3) uint8``.

    Returns:
        One result for each episode, sorted by (seed, repeat); equal to the rollout's if ``policy_batch_size`` is.
    """
    episodes = list(dict.fromkeys(episode for episode, _ in videos))
    cameras: list[_Camera] = []

    def make_env() -> _Camera:
        cameras.append(_Camera(env_factory.make_env()))  # type: ignore[arg-type]  # narrower than Env: it renders
        return cameras[-1]

    # all are live at once: the policy plans for all in one call, and the environments are in the episodes' order
    filmed = replace(env_factory, make_env=make_env)
    results = rollout(
        policy, filmed, episodes, num_envs=len(episodes), policy_batch_size=policy_batch_size, progress=False
    )
    for episode, path in videos:
        frames = np.stack(cameras[episodes.index(episode)].frames)
        with replacing(path) as temporary:
            iio.imwrite(temporary, frames, extension=".gif", duration=FRAME_MILLISECONDS, loop=0)
    return results


class _RenderingEnv(Env, Protocol):
    def render(self) -> np.ndarray: ...


class _Camera:
    """An environment that records a picture of its start, of every second step and of its end."""

    def __init__(self, env: _RenderingEnv) -> None:
        self.frames: list[np.ndarray] = []
        self._env = env
        self._steps = 0

    def reset(self, **arguments: Any) -> np.ndarray:
        observation = self._env.reset(**arguments)
        self.frames, self._steps = [self._env.render()], 0
        return observation

    def step(self, action: np.ndarray) -> Transition:
        transition = self._env.step(action)
        self._steps += 1
        if transition.done or self._steps % STEPS_PER_FRAME == 0:
            self.frames.append(self._env.render())
        return transition
