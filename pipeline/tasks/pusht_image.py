"""Push-T seen by a camera: the simulation of ``pipeline.tasks.pusht``, observed as images and the agent's position.

The environments' raw observation stays the state; an image is a pure function of it, so that rollouts move states
about, and only the policy draws.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks import pusht
from pipeline.tasks.pusht_pixels import SIDE, render
from pipeline.tasks.vector import Evaluation

EvaluationName = Literal["pusht_image_a", "pusht_image_b"]
ObservationKind = Literal["image"]

MAX_STEPS = pusht.MAX_STEPS
ACTION_DIM = pusht.ACTION_DIM
OBSERVATION_DIM: dict[ObservationKind, int] = {"image": 2}
"""Numbers beside the image."""
IMAGE_SHAPE = (SIDE, SIDE, 3)

_STATE_EVALUATION: dict[EvaluationName, pusht.EvaluationName] = {"pusht_image_a": "pusht_a", "pusht_image_b": "pusht_b"}


def evaluation(name: EvaluationName, order: pusht.ResetOrder = "exact", max_steps: int = MAX_STEPS) -> Evaluation:
    """That of ``pipeline.tasks.pusht`` from the same initial states: pusht_image_a is pusht_a seen by a camera."""
    return pusht.evaluation(_STATE_EVALUATION[name], order, max_steps)


def render_states(states: NDArray[np.floating]) -> NDArray[np.uint8]:
    """What the camera sees of states (..., 5): (..., 96, 96, 3), RGB; see ``pipeline.tasks.pusht_pixels``."""
    return render(states)


def observe(state: NDArray[np.floating], kind: ObservationKind = "image") -> NDArray[np.float32]:
    """What is observed beside the image: the agent's x, y (..., 2) in the world, from states (..., 5).

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind not in OBSERVATION_DIM:
        raise ValueError(f"observation kind is {kind!r}, must be one of {tuple(OBSERVATION_DIM)}")
    return np.asarray(state)[..., :2].astype(np.float32)
