"""Store camera pictures inside raw observations, for tasks that cannot draw a picture from the state."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHANNELS = 3


@dataclass(frozen=True)
class Camera:
    """One camera. A raw observation holds the observed numbers, then the pixels of a square picture.

    Attributes:
        numbers: P, the count of numbers beside the picture. side: pixels per side of the picture, S.
    """

    numbers: int
    side: int

    @property
    def raw_dim(self) -> int:
        """Components of a raw observation, P + 3 S²."""
        return self.numbers + CHANNELS * self.side**2

    def encode(self, states: NDArray[np.floating]) -> NDArray[np.float32]:
        """Take the numbers (…, P) from raw observations (…, P or more)."""
        return np.asarray(states[..., : self.numbers], dtype=np.float32)

    def draw(self, states: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Take the pictures (…, S, S, 3) from raw observations (…, P + 3 S²)."""
        pixels = np.asarray(states[..., self.numbers :], dtype=np.uint8)
        return pixels.reshape(*pixels.shape[:-1], self.side, self.side, CHANNELS)

    def observed(self, numbers: NDArray[np.floating], picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Make a raw observation (P + 3 S²,) from numbers (P,) and a picture (H, W, 3) of any size."""
        pixels = squared(picture[None], self.side)[0]
        return np.concatenate([np.asarray(numbers, dtype=np.float64), pixels.ravel().astype(np.float64)])


def squared(pictures: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale pictures (N, H, W, 3) to (N, ``side``, ``side``, 3), bilinear and antialiased.

    Nothing is cropped: a wide picture is squeezed, so that the camera's whole view stays visible.
    """
    if pictures.shape[1:3] == (side, side):
        return pictures
    import torch  # here, since settings are checked without it

    channels_first = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(channels_first, (side, side), mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()
