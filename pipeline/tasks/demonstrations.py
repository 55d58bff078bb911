"""Define ``Demonstrations``, which the reader of every data set returns; a hash of the values identifies them."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.utils.errors import UserError

STATE = "data/state"
ACTION = "data/action"
EPISODE_ENDS = "meta/episode_ends"

Episode = TypeVar("Episode")


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes laid end to end: N steps in E episodes.

    Attributes:
        state: (N, S) float32, the raw observation before each action.
        action: (N, A) float32, the executed action.
        episode_ends: (E,) int64, strictly increasing: the index one past the last step of each episode.
    """

    state: NDArray[np.float32]
    action: NDArray[np.float32]
    episode_ends: NDArray[np.int64]

    @property
    def n_episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.episode_ends)

    def episode(self, index: int) -> slice:
        """Return the steps of episode ``index``, 0 ≤ index < E.

        Raises:
            IndexError: there is no such episode.
        """
        if not 0 <= index < self.n_episodes:
            raise IndexError(f"episode {index} of {self.n_episodes}")
        start = int(self.episode_ends[index - 1]) if index else 0
        return slice(start, int(self.episode_ends[index]))

    def content_sha256(self) -> str:
        """Hash the values themselves, so that the hash does not depend on storage or compression.

        SHA-256 over ``data/state``, ``data/action``, ``meta/episode_ends`` in this order, each as the line
        ``name dtype shape`` followed by its bytes (little-endian float32, float32, int64; C order).
        """
        digest = hashlib.sha256()
        for name, array, dtype in (
            (STATE, self.state, "<f4"),
            (ACTION, self.action, "<f4"),
            (EPISODE_ENDS, self.episode_ends, "<i8"),
        ):
            digest.update(f"{name} {dtype} {'x'.join(map(str, array.shape))}\n".encode())
            digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
        return digest.hexdigest()


class ImageDemonstrations(Protocol):
    """Demonstrations with an image before each action; the images are never in memory all at once."""

    @property
    def demonstrations(self) -> Demonstrations:
        """States, actions and episodes."""

    def blocks(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order, ``size`` at a time: (≤ size, H, W, 3), RGB.

        Raises:
            UserError: an image cannot be read; those before it were yielded.
        """


def read_episodes(path: Path, episodes: Mapping[str, Callable[[], Episode]]) -> dict[str, Episode]:
    """Read episodes that are stored one by one; skip unreadable ones, such as a recording cut short.

    A warning gives the number of skipped episodes and the reason for the first one.

    Args:
        path: the data set, for the warning.
        episodes: name of an episode → its reader, which raises ``UserError`` if it fails.

    Raises:
        UserError: no episode can be read; the error of the first one.
    """
    read: dict[str, Episode] = {}
    errors: list[UserError] = []
    for name, read_one in episodes.items():
        try:
            read[name] = read_one()
        except UserError as error:
            errors.append(error)
    if errors and not read:
        raise errors[0]
    if errors:
        left_out = f"{path}: left out {len(errors)} of {len(episodes)} episodes"
        warnings.warn(f"{left_out}, the first since {errors[0]}", stacklevel=2)
    return read
