"""The benchmarks by name: what training and evaluation need to know of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks import kitchen, pusht, pusht_image, robomimic
from pipeline.tasks.demonstrations import Demonstrations, read_pusht
from pipeline.tasks.kitchen_demonstrations import read_kitchen
from pipeline.tasks.robomimic_files import read_robomimic
from pipeline.tasks.types import Observe
from pipeline.tasks.vector import Evaluation


@dataclass(frozen=True)
class TaskSpec:
    """One benchmark.

    Attributes:
        action_dim: components of an action.
        read: demonstrations from a file or folder in any of its public forms; raises ``UserError``.
        observe: kind of observation → encoding of raw states.
        observation_dim: kind of observation → length of an encoded state.
        evaluations: names of the ways to evaluate it, as they appear in tables.
        evaluation: (name, reset order, steps an episode) → environment and initial states. Push-T has two reset orders,
            the others none.
        max_steps: steps of an episode in the literature.
        least_variation: half the range, in raw units, below which an observed component is taken for constant.
        subtasks: parts that an episode can complete, of which the score is the share; 0: it has no parts.
        draw: raw states (…, S) → the images (…, H, W, 3), uint8, that are observed with the encoding; None: none are.
    """

    action_dim: int
    read: Callable[[Path], Demonstrations]
    observe: Callable[[Any], Observe]
    observation_dim: Callable[[Any], int]
    evaluations: tuple[str, ...]
    evaluation: Callable[[Any, Any, int], Evaluation]
    max_steps: int
    least_variation: float = 1e-6
    subtasks: int = 0
    draw: Callable[[NDArray[np.floating]], NDArray[np.uint8]] | None = None


def _robomimic(task: Any) -> TaskSpec:
    return TaskSpec(
        action_dim=robomimic.ACTION_DIM[task],
        read=partial(read_robomimic, task=task),
        observe=lambda kind: partial(robomimic.observe, kind=kind),
        observation_dim=lambda kind: robomimic.OBSERVATION_DIM[task][kind],
        evaluations=(task,),
        evaluation=robomimic.evaluation,
        max_steps=robomimic.MAX_STEPS[task],
    )


TASKS: dict[str, TaskSpec] = {
    "pusht": TaskSpec(
        action_dim=pusht.ACTION_DIM,
        read=read_pusht,
        observe=lambda kind: partial(pusht.observe, kind=kind),
        observation_dim=lambda kind: pusht.OBSERVATION_DIM[kind],
        evaluations=("pusht_a", "pusht_b"),
        evaluation=pusht.evaluation,
        max_steps=pusht.MAX_STEPS,
    ),
    "pusht_image": TaskSpec(
        action_dim=pusht_image.ACTION_DIM,
        read=read_pusht,
        observe=lambda kind: partial(pusht_image.observe, kind=kind),
        observation_dim=lambda kind: pusht_image.OBSERVATION_DIM[kind],
        evaluations=("pusht_image_a", "pusht_image_b"),
        evaluation=pusht_image.evaluation,
        max_steps=pusht_image.MAX_STEPS,
        draw=pusht_image.render_states,
    ),
    "kitchen": TaskSpec(
        action_dim=kitchen.ACTION_DIM,
        read=read_kitchen,
        observe=lambda kind: partial(kitchen.observe, kind=kind),
        observation_dim=lambda kind: kitchen.OBSERVATION_DIM[kind],
        evaluations=("kitchen",),
        evaluation=kitchen.evaluation,
        max_steps=kitchen.MAX_STEPS,
        least_variation=0.015,  # knobs that nobody turns move by less, and nothing that is moved does
        subtasks=4,
    ),
    **{task: _robomimic(task) for task in robomimic.MAX_STEPS},
}
