"""The benchmarks by name: what training and evaluation need to know of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks import pusht
from pipeline.tasks.vector import Evaluation

Observe = Callable[[NDArray[np.floating]], NDArray[np.float32]]
"""Raw simulator states (…, S) → what the net sees (…, D)."""


@dataclass(frozen=True)
class TaskSpec:
    """One benchmark.

    Attributes:
        action_dim: components of an action.
        observe: kind of observation → encoding of raw states.
        observation_dim: kind of observation → length of an encoded state.
        evaluations: names of the ways to evaluate it, as they appear in tables.
        evaluation: (name, reset order, steps an episode) → environment and initial states.
    """

    action_dim: int
    observe: Callable[[pusht.ObservationKind], Observe]
    observation_dim: Callable[[pusht.ObservationKind], int]
    evaluations: tuple[str, ...]
    evaluation: Callable[[pusht.EvaluationName, pusht.ResetOrder, int], Evaluation]


TASKS: dict[str, TaskSpec] = {
    "pusht": TaskSpec(
        action_dim=pusht.ACTION_DIM,
        observe=lambda kind: partial(pusht.observe, kind=kind),
        observation_dim=lambda kind: pusht.OBSERVATION_DIM[kind],
        evaluations=get_args(pusht.EvaluationName),
        evaluation=pusht.evaluation,
    ),
}
