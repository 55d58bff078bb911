"""A task in one file outside the library: move a point to the origin."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.api import Dataset, Demonstrations, EnvSpec, Observation, Task, Transition

EPISODES, STEPS = 6, 12


class Point:
    """A point on the plane that moves by a tenth of the action; solved within 0.1 of the origin."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def reset(self, seed: int) -> NDArray[np.float64]:
        self.steps, self.place = 0, np.random.default_rng(seed).uniform(-1, 1, 2)
        return self.place.copy()

    def step(self, action: NDArray[np.floating]) -> Transition:
        self.steps += 1
        self.place = self.place + 0.1 * np.clip(action, -1, 1)
        distance = float(np.linalg.norm(self.place))
        solved = distance < 0.1
        return Transition(self.place.copy(), max(0.0, 1 - distance), solved, solved or self.steps >= self.max_steps)


def read(path: Path) -> Demonstrations:
    """Make a straight path to the origin from each start in the file."""
    starts = np.loadtxt(path).reshape(EPISODES, 1, 2)
    places = (starts * np.linspace(1, 0.1, STEPS)[:, None]).reshape(-1, 2)
    return Demonstrations(
        places.astype(np.float32), (-places).clip(-1, 1).astype(np.float32), STEPS * np.arange(1, EPISODES + 1)
    )


def encode(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the position."""
    return np.asarray(states).astype(np.float32)


STARTS = Path(__file__).with_name("starts.txt")
TASK = Task(
    title="A point",
    datasets={"starts": Dataset("starts of a point", "MIT", "this test", read, EPISODES, shipped=STARTS)},
    observations={"place": Observation(2, encode)},
    action_dim=2,
    envs={"": EnvSpec(Point, 20)},
    action_bounds=((-1, -1), (1, 1)),
)
