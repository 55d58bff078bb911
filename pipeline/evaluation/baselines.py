"""Baseline policies that learn nothing and that every learned policy has to beat; each is a ``rollouts.Policy``."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.image_policy import Draw
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.types import Observe

BLOCK = 8192
"""Training windows compared at once, so that memory does not grow with the data."""
SHRUNK_SIDE = 16
"""Side in pixels of the small images that are compared. Their grey levels show shifts far smaller than a pixel."""


class RandomPolicy:
    """Draw every plan's actions uniformly from the box that the training actions span.

    Args:
        action: actions of the training windows, normalised, (W, horizon, A).
        action_normalizer: fitted on training data.
        n_obs_steps, n_action_steps: as of every policy.
    """

    def __init__(self, action: Tensor, action_normalizer: Normalizer, *, n_obs_steps: int, n_action_steps: int) -> None:
        self.n_obs_steps = n_obs_steps
        self.horizon = action.shape[1]
        self.n_action_steps = n_action_steps
        self.noise_shape: tuple[int, ...] = tuple(action.shape[1:])
        actions = action_normalizer.denormalize(action)
        self._low, self._high = actions.amin((0, 1)).double(), actions.amax((0, 1)).double()

    def act(self, observations: NDArray[np.floating], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise (B, horizon, A) → actions, shaped as the noise; the observations are not used."""
        del observations
        quantile = torch.special.ndtr(torch.from_numpy(noise).double())
        return (self._low + quantile * (self._high - self._low)).float().numpy()


class NearestDemoPolicy:
    """Replay the actions of the training window with the nearest observations; among equals, of the first.

    The distance is Euclidean between conditions, that is, encoded and normalised observation histories. Images are
    compared by the pixels of their small versions (``SmallImages``).

    Args:
        observe: the task's encoding of raw states.
        observation_normalizer, action_normalizer: fitted on training data.
        condition, action: training windows, normalised, (W, C) and (W, horizon, A).
        n_obs_steps, n_action_steps: as of every policy.
    """

    def __init__(
        self,
        observe: Observe,
        observation_normalizer: Normalizer,
        action_normalizer: Normalizer,
        condition: Tensor,
        action: Tensor,
        *,
        n_obs_steps: int,
        n_action_steps: int,
    ) -> None:
        self.n_obs_steps = n_obs_steps
        self.horizon = action.shape[1]
        self.n_action_steps = n_action_steps
        self.noise_shape: tuple[int, ...] = (0,)
        self._observe = observe
        self._observation_normalizer = observation_normalizer
        self._condition = condition
        self._actions = action_normalizer.denormalize(action).numpy()

    def act(self, observations: NDArray[np.floating], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw states (B, n_obs_steps, S) → actions (B, horizon, A); the noise is not used."""
        del noise
        observed = torch.from_numpy(self._observe(observations))
        return self._actions[self.nearest(self._observation_normalizer.normalize(observed).flatten(1))]

    def nearest(self, condition: Tensor) -> NDArray[np.int64]:
        """Conditions (B, C) → indices of the nearest training windows, (B,)."""
        best = np.zeros(len(condition), dtype=np.int64)
        least = np.full(len(condition), np.inf, dtype=np.float32)
        for start in range(0, len(self._condition), BLOCK):
            block = self._condition[start : start + BLOCK]
            # by differences, since |a|² + |b|² − 2ab depends on the batch by rounding and is inexact for near windows
            distances = torch.cdist(condition, block, compute_mode="donot_use_mm_for_euclid_dist").numpy()
            first = distances.argmin(1)
            distance = np.take_along_axis(distances, first[:, None], 1)[:, 0]
            nearer = distance < least
            best[nearer], least[nearer] = start + first[nearer], distance[nearer]
        return best


@dataclass(frozen=True)
class SmallImages:
    """An ``Observe`` of camera images: raw states (…, S) → ``shrunk`` images, then the other numbers (…, F + P).

    Attributes:
        draw: the camera. observe: the P numbers beside the image.
    """

    draw: Draw
    observe: Observe

    def __call__(self, states: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.concatenate([shrunk(self.draw(states)), self.observe(states)], axis=-1)


def shrunk(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrink images (…, H, W, C) to height and width ``SHRUNK_SIDE`` by averages from 0 to 1, flat (…, F).

    Raises:
        ValueError: H or W is not a multiple of ``SHRUNK_SIDE``.
    """
    *many, height, width, channels = images.shape
    if height % SHRUNK_SIDE or width % SHRUNK_SIDE:
        raise ValueError(f"images are {height} × {width}, must be multiples of {SHRUNK_SIDE}")
    tiles = images.reshape(*many, SHRUNK_SIDE, height // SHRUNK_SIDE, SHRUNK_SIDE, width // SHRUNK_SIDE, channels)
    return (tiles.mean((-4, -2), dtype=np.float32) / 255).reshape(*many, -1)
