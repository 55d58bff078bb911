"""Run a scripted expert in one of Robomimic's tasks, and record the data that the public files store of an episode."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState

from pipeline.experts.episode import Expert, ExpertEpisode
from pipeline.experts.waypoints import Script
from pipeline.tasks.robomimic.actions import file_actions, policy_actions
from pipeline.tasks.robomimic.env import Robomimic
from pipeline.tasks.robomimic.files import write_robomimic
from pipeline.tasks.robomimic.simulator import Task

_STEPS_AFTER_SUCCESS = 3


def robomimic_expert(task: Task, script: Callable[[Any, RandomState], Script], max_steps: int) -> Expert:
    """Make the expert that plays ``task`` by ``script``."""
    return Expert(partial(record, task, script, max_steps), partial(_write, task))


def _write(task: Task, path: Path, episodes: Sequence[ExpertEpisode]) -> None:
    write_robomimic(path, task, episodes)


def record(task: Task, script: Callable[[Any, RandomState], Script], max_steps: int, seed: int) -> ExpertEpisode:
    """Play the episode of ``seed`` by ``script``, until a few steps after it is solved, at most ``max_steps``.

    ``script`` takes robosuite's environment at the initial state, and the generator of the expert's variation. The
    states are MuJoCo's, flattened, before each action. The model's XML is the extra ``model_file``.
    """
    task_env = _environment(task)
    simulator = task_env.simulator
    observation = task_env.reset(seed=seed)
    model = simulator.get_state()["model"]
    observations, states, actions, scores = [], [], [], [0.0]
    # the seed alone would repeat the random numbers of the initial state
    plan = script(simulator.env, RandomState([seed, 1]))
    solved, after = False, 0
    for action in islice(plan, max_steps):
        wanted = policy_actions(action)
        observations.append(observation)
        states.append(simulator.env.sim.get_state().flatten())
        actions.append(file_actions(wanted))  # the simulator's input; may differ from ``action`` in the last bit
        observation, score, success, _ = task_env.step(wanted)
        scores.append(score)
        after += solved
        solved = solved or success
        if after == _STEPS_AFTER_SUCCESS:
            break
    return ExpertEpisode(
        seed=seed,
        observations=np.array(observations),
        actions=np.array(actions),
        success=solved,
        score=max(scores),
        states=np.array(states),
        extras={"model_file": model},
    )


@cache
def _environment(task: Task) -> Robomimic:
    return Robomimic(task)
