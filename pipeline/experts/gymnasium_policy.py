"""Use any policy with a method ``get_action`` as the scripted expert of a gymnasium environment (blocks ``custom``)."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.experts.episode import Expert, ExpertEpisode
from pipeline.tasks import archive
from pipeline.tasks.custom.env import GymnasiumEnv
from pipeline.tasks.custom.settings import Environment, ScriptedExpert
from pipeline.tasks.formats.lerobot_writer import write_lerobot
from pipeline.tasks.loader import find

OBSERVATION, ACTION = "observation.state", "action"
"""Names of the arrays in the written data set; observations are flattened to one vector."""


def policy_expert(custom: Mapping[str, Any]) -> Expert:
    """Make the expert that a block's key ``custom`` describes; it writes zip archives of a LeRobotDataset v3.0."""
    environment = Environment.model_validate(custom["environment"])
    expert = ScriptedExpert.model_validate(custom["expert"])
    return Expert(partial(demonstrate, environment, expert), partial(write, environment))


def demonstrate(environment: Environment, expert: ScriptedExpert, seed: int) -> ExpertEpisode:
    """Run the expert in the episode of this seed, to its end.

    Raises:
        UserError: the environment or the policy cannot be made.
    """
    env = GymnasiumEnv(environment, environment.max_steps)
    policy = find(expert.policy)()
    generator = np.random.default_rng(seed)
    states, actions, done, best, success = [env.reset(seed)], [], False, 0.0, False
    while not done:
        with warnings.catch_warnings():  # some policies warn that their action exceeds the bounds
            warnings.simplefilter("ignore")
            wanted = np.ravel(policy.get_action(env.observed))
        noisy = wanted + expert.action_noise * generator.standard_normal(len(wanted))
        actions.append(np.clip(noisy, env.low, env.high).astype(np.float32))
        state, score, success, done = env.step(actions[-1])
        states.append(state)
        best = max(best, score)
    solved = success if environment.success else best >= 1.0
    return ExpertEpisode(seed, np.stack(states[:-1]), np.stack(actions), solved, best)


def write(environment: Environment, path: Path, episodes: Sequence[ExpertEpisode]) -> None:
    """Write ``episodes`` as a zip archive of a LeRobotDataset v3.0, float32; equal episodes give equal bytes."""
    arrays = [{OBSERVATION: e.observations.astype(np.float32), ACTION: e.actions} for e in episodes]
    words = " ".join([environment.id, *(str(value) for value in environment.arguments.values())])
    rate = GymnasiumEnv(environment, environment.max_steps).rate
    with TemporaryDirectory() as folder:
        write_lerobot(Path(folder, "dataset"), arrays, rate, words, environment.id)
        archive.pack(Path(folder, "dataset"), path)
