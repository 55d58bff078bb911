"""Evaluate a policy without a simulator, by its answers to the recorded windows of held-out episodes.

As in rollouts, the noise depends only on the window, and all batches have one fixed size. So all models are compared on
the same draws, and the order changes nothing.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.offline_scores import EpisodeScores, score_episodes
from pipeline.evaluation.rollouts import Policy, act_padded
from pipeline.evaluation.seeds import FIRST_TEST_SEED
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.windows import ReportedWindows
from pipeline.utils.timing import median_ms

SAMPLES = 16
"""Answers to each window, if the policy is random."""
_TIMED_CALLS = 30


def draw(policy: Policy, windows: ReportedWindows, policy_batch_size: int) -> NDArray[np.float32]:
    """Draw the answers of ``policy`` to the ``windows``, raw actions (W, K, Tp, A); K = 1 if it is deterministic.

    Args:
        policy_batch_size: rows of every call of the policy; missing rows are zeros.

    Raises:
        FloatingPointError: the actions are not finite.
    """
    count = _answers(policy)
    plans = []
    for start in range(0, len(windows.row) * count, policy_batch_size):
        place = np.arange(start, min(start + policy_batch_size, len(windows.row) * count))
        noise = np.stack([_noise(policy, int(windows.row[i // count]), int(i % count)) for i in place])
        plans.append(act_padded(policy, windows.state[place // count], noise, policy_batch_size))
    drawn = np.concatenate(plans)
    if not np.isfinite(drawn).all():
        raise FloatingPointError("the policy returned actions that are not finite")
    return drawn.reshape(len(windows.row), count, *drawn.shape[1:])


def persisted(windows: ReportedWindows) -> NDArray[np.float32]:
    """Repeat the action before each window, as a baseline; shaped as the result of ``draw``."""
    horizon = windows.action.shape[1]
    return np.repeat(windows.previous[:, None, None], horizon, axis=2)


def score(
    drawn: NDArray[np.float32], windows: ReportedWindows, normalizer: Normalizer, n_action_steps: int
) -> list[EpisodeScores]:
    """Score raw answers (W, K, Tp, A) on each episode, see ``score_episodes``; ``normalizer`` is that of actions."""

    def normalized(actions: NDArray[np.float32]) -> NDArray[np.float32]:
        return normalizer.normalize(torch.from_numpy(actions)).numpy()

    return score_episodes(normalized(drawn), normalized(windows.action), windows, n_action_steps)


def milliseconds_a_plan(policy: Policy, windows: ReportedWindows) -> float:
    """Measure the median time of an answer to one observation, on this machine."""
    noise = _noise(policy, 0, 0)[None]

    def answer(i: int) -> Callable[[], object]:
        return partial(policy.act, windows.state[i % len(windows.row)][None], noise)

    return median_ms(answer, _TIMED_CALLS, _TIMED_CALLS // 3)


def _answers(policy: Policy) -> int:
    return SAMPLES if np.prod(policy.noise_shape) else 1


def _noise(policy: Policy, row: int, sample: int) -> NDArray[np.float32]:
    generator = np.random.default_rng([FIRST_TEST_SEED, row, sample])
    return generator.standard_normal(policy.noise_shape, dtype=np.float32)
