"""Demonstrations as tensors: encoded, normalised, cut into windows and split by episode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.settings.schema import DataSettings
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.types import Observe
from pipeline.tasks.windows import cut_windows
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import derive


@dataclass(frozen=True)
class PreparedData:
    """What training reads; all float32, conditions and actions normalised.

    Attributes:
        condition, action: training windows, (W, C) and (W, Tp, A).
        held_out_condition, held_out_action: windows of episodes never trained on.
        observation_normalizer, action_normalizer: fitted on the training episodes.
    """

    condition: Tensor
    action: Tensor
    held_out_condition: Tensor
    held_out_action: Tensor
    observation_normalizer: Normalizer
    action_normalizer: Normalizer

    def save(self, path: Path) -> None:
        """Write as npz, atomically."""
        arrays = {
            "condition": self.condition,
            "action": self.action,
            "held_out_condition": self.held_out_condition,
            "held_out_action": self.held_out_action,
            "observation_offset": self.observation_normalizer.offset,
            "observation_scale": self.observation_normalizer.scale,
            "action_offset": self.action_normalizer.offset,
            "action_scale": self.action_normalizer.scale,
        }
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in arrays.items()})

    @classmethod
    def load(cls, path: Path) -> PreparedData:
        """Read what ``save`` wrote."""
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        return cls(
            condition=arrays["condition"],
            action=arrays["action"],
            held_out_condition=arrays["held_out_condition"],
            held_out_action=arrays["held_out_action"],
            observation_normalizer=Normalizer.of(arrays["observation_offset"], arrays["observation_scale"]),
            action_normalizer=Normalizer.of(arrays["action_offset"], arrays["action_scale"]),
        )


def prepare(
    demonstrations: Demonstrations, settings: DataSettings, observe: Observe, seed: int, least_variation: float = 1e-6
) -> PreparedData:
    """Hold out a share of the episodes, fit the normalisers on the others, and cut all into windows.

    Args:
        least_variation: of an observation's component, half its range: one that varies less is only centred.

    Raises:
        UserError: too few episodes to hold one out.
    """
    ends = demonstrations.episode_ends
    held_out_count = max(1, round(settings.validation_fraction * len(ends)))
    if held_out_count >= len(ends):
        raise UserError(
            f"validation_fraction: given {settings.validation_fraction}, allowed: a share of the {len(ends)} "
            "episodes that leaves at least one for training"
        )
    generator = torch.Generator().manual_seed(derive(seed, "held-out episodes"))
    held_out_episodes = torch.randperm(len(ends), generator=generator)[:held_out_count].numpy()

    windows = cut_windows(ends, settings.n_obs_steps, settings.horizon)
    held_out = np.isin(windows.episode, held_out_episodes)
    training_rows = ~np.isin(np.searchsorted(ends, np.arange(ends[-1]), side="right"), held_out_episodes)

    observed = torch.from_numpy(observe(demonstrations.state))
    actions = torch.from_numpy(demonstrations.action)
    observation_normalizer = Normalizer.fit(observed[training_rows], least_variation)
    action_normalizer = Normalizer.fit(actions[training_rows])
    condition = observation_normalizer.normalize(observed)[windows.observation].flatten(1)
    action = action_normalizer.normalize(actions)[windows.action]
    return PreparedData(
        condition=condition[~held_out],
        action=action[~held_out],
        held_out_condition=condition[held_out],
        held_out_action=action[held_out],
        observation_normalizer=observation_normalizer,
        action_normalizer=action_normalizer,
    )
