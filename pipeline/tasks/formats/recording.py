"""Define ``Recording``, the common form of data sets of all formats: features by key, and readers of episodes."""

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
"""Key → (T, …), one row per step of one episode; row t of an action answers row t of an observation."""

VIDEO = "video"
"""The ``dtype`` of a feature that is a camera's video."""

LONGEST_VECTOR = 1000
"""A feature with more numbers per step is taken for a picture or a map, not for a vector that a policy observes."""


@dataclass(frozen=True)
class Clip:
    """An episode's part of a camera's video: the file, and the index of its first frame there."""

    file: Path
    first: int


@dataclass(frozen=True)
class Feature:
    """Shape and type of one key of a data set in each step.

    Attributes:
        shape: shape of one step, () for a single number.
        dtype: numpy's name of the number type; another word, such as ``video``, if it holds no numbers.
        names: names of its components, in order; empty if the data set gives none.
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
        """True if each step is a vector of real numbers, or a small array to be flattened."""
        return self._kind in tuple("biuf") and 0 < self.size <= LONGEST_VECTOR

    @property
    def is_picture(self) -> bool:
        """True if each step is a colour picture, (H, W, 3), as numbers or as a frame of a video."""
        return (self.dtype == VIDEO or self._kind in tuple("uf")) and len(self.shape) == 3 and self.shape[2] == 3

    @property
    def _kind(self) -> str:
        """numpy's kind of the numbers; empty: they are no numbers."""
        try:
            return np.dtype(self.dtype).kind
        except TypeError:
            return ""


@dataclass(frozen=True, eq=False)
class Recording:
    """One data set.

    Attributes:
        path: the file or folder.
        format: its format, by the name for ``format:`` in params.yaml.
        title: its format and version, for people.
        features: key → feature.
        episodes: name of each episode, in order → reader of its rows for given keys, which raises ``UserError`` if it
            fails.
        one_by_one: whether each episode is stored by itself, so that a damaged episode does not affect the others.
        rate: steps per second, if known.
        facts: more facts from the data set, for people: the robot, the tasks.
        limits: key → (least, greatest) of each component by the data set's own statistics, both (D,).
        statistics: the file with these statistics.
        clips: a camera's key → (name of an episode → its clip); empty if the key is no video.
        environment: recipe of the environment in which it was recorded: a block ``environment`` of params.yaml.
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
            what: the role of the keys, such as ``observation``.

        Raises:
            UserError: naming the first such key, and the keys that hold vectors.
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
    """Return the message of a library's exception in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def last_line(error: Exception) -> str:
    """Return the last line of an exception's message; if it quotes a program such as ffmpeg, that is the cause."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[-1] if said else type(error).__name__
