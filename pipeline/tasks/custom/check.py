"""Check that demonstrations fit an environment, before anything is trained on them."""

import warnings

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.custom.env import WHERE, GymnasiumEnv
from pipeline.tasks.custom.settings import Environment
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.utils.errors import UserError

SEED = 200_000
"""The first validation seed; test seeds stay unseen."""
FIRST_STATES, REPLAYED_STEPS = 5, 20


def check_fit(settings: Environment, demonstrations: Demonstrations) -> None:
    """Refuse demonstrations of another environment, and an environment with irreproducible episodes.

    Raises:
        UserError: numbers of components differ; demonstrated actions leave the environment's bounds; episodes begin far
            from all demonstrated states; two replays with one seed differ; ``success`` names no key of ``info``.
    """
    env = GymnasiumEnv(settings, settings.max_steps)
    observed, action = demonstrations.state.shape[1], demonstrations.action.shape[1]
    for what, of_env, of_data in (("observations", env.observation_dim, observed), ("actions", len(env.low), action)):
        if of_env != of_data:
            raise UserError(
                f"{WHERE}: {what} of {settings.id} have {of_env} numbers, those of the demonstrations {of_data}; the"
                " data set is of another environment, or has other keys"
            )
    _check_bounds(settings, env, demonstrations.action)
    _check_replays(settings, env, demonstrations.action[:REPLAYED_STEPS])
    _check_first_states(settings, env, demonstrations.state)


def _check_bounds(settings: Environment, env: GymnasiumEnv, actions: NDArray[np.float32]) -> None:
    least, greatest = actions.min(0), actions.max(0)
    span = np.where(np.isfinite(env.high - env.low), env.high - env.low, 1.0)
    outside = (least < env.low - 1e-3 * span) | (greatest > env.high + 1e-3 * span)
    if outside.any():
        i = int(outside.argmax())
        done, taken = f"{least[i]:.4g} to {greatest[i]:.4g}", f"{env.low[i]:.4g} to {env.high[i]:.4g}"
        raise UserError(
            f"{WHERE}: component {i} of the demonstrated actions reaches {done}, {settings.id} takes {taken}; rescale"
            " or clip the data, or correct the keys"
        )


def _check_replays(settings: Environment, env: GymnasiumEnv, actions: NDArray[np.float32]) -> None:
    """Replay one seed twice in one environment, with another episode between, and once in a new environment."""
    first = _replay(env, SEED, actions)
    _replay(env, SEED + 1, actions)
    fresh = _replay(GymnasiumEnv(settings, settings.max_steps), SEED, actions)
    for other, why in ((fresh, "it draws from more than its seed"), (_replay(env, SEED, actions), _LEFT)):
        if first.shape != other.shape or not np.array_equal(first, other):
            steps = min(len(first), len(other))
            differs = (first[:steps] != other[:steps]).any(axis=1)
            step = int(differs.argmax()) if differs.any() else steps
            raise UserError(
                f"{WHERE}.id: {settings.id} is not reproducible: after reset(seed={SEED}) and equal actions,"
                f" observations differ from step {step} on; {why}"
            )


_LEFT = "an episode before it changes it, so reset() does not bring back all that it should"


def _replay(env: GymnasiumEnv, seed: int, actions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Replay ``actions`` in the episode of ``seed``; return observations and scores, (T + 1, D + 1)."""
    rows = [np.append(env.reset(seed), 0.0)]
    for action in actions:
        transition = env.step(action)
        rows.append(np.append(transition.observation, transition.score))
        if transition.done:
            break
    return np.stack(rows)


def _check_first_states(settings: Environment, env: GymnasiumEnv, states: NDArray[np.float32]) -> None:
    """Compare the first observations of episodes with the range of the demonstrations."""
    begun = np.stack([env.reset(SEED + i)[: states.shape[1]] for i in range(FIRST_STATES)])
    least, greatest = states.min(0), states.max(0)
    margin = np.maximum(greatest - least, 1e-3 * np.maximum(1.0, np.abs(greatest)))
    away = ((begun < least - margin) | (begun > greatest + margin)).all(axis=0)
    if not away.any():
        return
    i = int(away.argmax())
    demonstrated = f"{least[i]:.4g} to {greatest[i]:.4g}"
    line = (
        f"{WHERE}: {away.sum()} of {len(away)} observed numbers are far from all demonstrated when episodes of"
        f" {settings.id} begin, such as number {i}: {begun[0, i]:.4g}, demonstrated {demonstrated}"
    )
    if away.sum() * 2 > len(away):
        raise UserError(f"{line}; the data set is of another environment, or its keys are in another order")
    warnings.warn(line, stacklevel=2)
