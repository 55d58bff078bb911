"""A data set of demonstrations seen alike whatever its format: features by key, and episodes to read them from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.utils.errors import UserError

Array = NDArray[Any]
Rows = dict[str, Array]
"""Key → (T, …), one row a step of one episode; row t of an action answers row t of an observation."""

VIDEO = "video"
"""What stands for the kind of number where a feature is a camera's video."""

LONGEST_VECTOR = 1000
"""Numbers a step, above which a feature is taken for a picture or a map, not for a vector that a policy observes."""


@dataclass(frozen=True)
class Clip:
    """An episode's part of a camera's video: the file, and the number of its first frame there."""

    file: Path
    first: int


@dataclass(frozen=True)
class Feature:
    """What one key of a data set holds in each step.

    Attributes:
        shape: of one step, () for a single number.
        dtype: numpy's name of its numbers; another word, such as ``video``, where it is no number.
        names: of its components, in order; empty where the data set names none.
    """

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Numbers in one step."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether each step is a vector, or a small array to be flattened, of real numbers."""
        return self._kind in tuple("biuf") and 0 < self.size <= LONGEST_VECTOR

    @property
    def is_picture(self) -> bool:
        """Whether each step is a colour picture, (H, W, 3), as numbers or as a frame of a video."""
        return (self.dtype == VIDEO or self._kind in tuple("uf")) and len(self.shape) == 3 and self.shape[2] == 3

    @property
    def _kind(self) -> str:
        """Of numbers, as numpy has it; empty: they are none."""
        try:
            return np.dtype(self.dtype).kind
        except TypeError:
            return ""


@dataclass(frozen=True, eq=False)
class Recording:
    """One data set.

    Attributes:
        path: the file or folder.
        format: its format, as ``format:`` in params.yaml calls it.
        title: its format and version as people call it.
        features: what it holds, by key.
        episodes: the name of each, in order → what reads its rows of the given keys. It raises ``UserError`` where it
            cannot.
        one_by_one: whether each episode is stored by itself, so that a broken one says nothing about the others.
        rate: steps a second, if the data set tells.
        facts: what else it says of itself, for people: the robot, the tasks.
        limits: key → the (least, greatest) of each component by the data set's own statistics, both (D,).
        statistics: the file that they are from.
        clips: a camera's key → where its video of each episode is, by the episode's name; empty of what is no video.
        environment: the recipe of the environment it was recorded in: a block ``environment`` of params.yaml.
    """

    path: Path
    format: str
    title: str
    features: Mapping[str, Feature]
    episodes: Mapping[str, Callable[[Sequence[str]], Rows]]
    one_by_one: bool = False
    rate: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    statistics: Path | None = None
    clips: Callable[[str], Mapping[str, Clip]] = lambda _: {}
    environment: Mapping[str, Any] | None = None

    def require(self, what: str, keys: Sequence[str]) -> None:
        """Refuse keys that are absent or hold no vectors.

        Args:
            what: what the keys are for, such as ``observation``.

        Raises:
            UserError: naming the first such key, and those that could be meant.
        """
        allowed = ", ".join(key for key, feature in self.features.items() if feature.is_vector)
        for key in keys:
            if key not in self.features:
                raise UserError(f"{self.path}: {what} key {key!r} is absent; there are {allowed}")
            feature = self.features[key]
            if not feature.is_vector:
                given = f"{feature.dtype} of shape {feature.shape}"
                raise UserError(f"{self.path}: {what} key {key!r} is {given}, no vector; there are {allowed}")


def one_line(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def last_line(error: Exception) -> str:
    """What an exception says last: of one that quotes a program's output, such as ffmpeg's, the cause."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[-1] if said else type(error).__name__
