"""Turn demonstrations into tensors: encode, normalise, cut into windows and split by episode."""

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
from pipeline.tasks.windows import ReportedWindows, cut_reported, cut_windows
from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import derive

_REPORTED = "reported_"


@dataclass(frozen=True)
class PreparedData:
    """Training data as float32 tensors; conditions and actions are normalised.

    Attributes:
        condition, action: training windows, (W, C) and (W, Tp, A).
        held_out_condition, held_out_action: windows of episodes that are not trained on.
        observation_normalizer, action_normalizer: fitted on the training episodes.
        reported: windows for the results of an offline task; None: results come from simulation.
    """

    condition: Tensor
    action: Tensor
    held_out_condition: Tensor
    held_out_action: Tensor
    observation_normalizer: Normalizer
    action_normalizer: Normalizer
    reported: ReportedWindows | None = None

    def save(self, path: Path) -> None:
        """Write the data as npz, atomically."""
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
        reported = {} if self.reported is None else {f"{_REPORTED}{name}": a for name, a in vars(self.reported).items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in arrays.items()}, **reported)

    @classmethod
    def load(cls, path: Path) -> PreparedData:
        """Read a file that ``save`` wrote."""
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if not name.startswith(_REPORTED)}
            reported = {name.removeprefix(_REPORTED): file[name] for name in file.files if name.startswith(_REPORTED)}
        return cls(
            condition=arrays["condition"],
            action=arrays["action"],
            held_out_condition=arrays["held_out_condition"],
            held_out_action=arrays["held_out_action"],
            observation_normalizer=Normalizer.of(arrays["observation_offset"], arrays["observation_scale"]),
            action_normalizer=Normalizer.of(arrays["action_offset"], arrays["action_scale"]),
            reported=ReportedWindows(**reported) if reported else None,
        )

    def reported_windows(self, path: Path) -> ReportedWindows:
        """Return the windows that results are reported on; ``path`` is the file of the data.

        Raises:
            UserError: there are none.
        """
        if self.reported is None:
            raise UserError(f"{path}: was prepared for a task with environments; run stage prepare again")
        return self.reported


def prepare(
    demonstrations: Demonstrations,
    settings: DataSettings,
    observe: Observe,
    seed: int,
    least_variation: float = 1e-6,
    *,
    offline: bool = False,
    series: bool = False,
) -> PreparedData:
    """Hold out a share of the episodes, fit the normalisers on the others, and cut all into windows.

    Args:
        least_variation: half range below which an observation's component is only centred.
        offline: split the held-out episodes: checkpoints are chosen by half of them (``held_out``), and results are
            reported on the others, one more if the number is odd.
        series: see ``pipeline.tasks.api.Task``.

    Raises:
        UserError: there are too few episodes to hold out one (offline: two), or the reported ones are too short.
    """
    ends = demonstrations.episode_ends
    held_out_count = max(2 if offline else 1, round(settings.validation_fraction * len(ends)))
    if held_out_count >= len(ends):
        raise UserError(
            f"validation_fraction: given {settings.validation_fraction}, allowed: a share of the {len(ends)} "
            f"episodes that leaves at least one for training{' beside two held out' if offline else ''}"
        )
    generator = torch.Generator().manual_seed(derive(seed, "held-out episodes"))
    order = torch.randperm(len(ends), generator=generator).numpy()
    held_out_episodes = np.arange(len(ends))[-held_out_count:] if series else order[:held_out_count]
    chosen_by = held_out_episodes[: held_out_count // 2] if offline else held_out_episodes

    windows = cut_windows(ends, settings.n_obs_steps, settings.horizon, unpadded=series)
    held_out, training = np.isin(windows.episode, chosen_by), ~np.isin(windows.episode, held_out_episodes)
    training_rows = ~np.isin(np.searchsorted(ends, np.arange(ends[-1]), side="right"), held_out_episodes)

    observed = torch.from_numpy(observe(demonstrations.state))
    actions = torch.from_numpy(demonstrations.action)
    observation_normalizer = Normalizer.fit(observed[training_rows], least_variation)
    action_normalizer = Normalizer.fit(actions[training_rows])
    condition = observation_normalizer.normalize(observed)[windows.observation].flatten(1)
    action = action_normalizer.normalize(actions)[windows.action]
    return PreparedData(
        condition=condition[training],
        action=action[training],
        held_out_condition=condition[held_out],
        held_out_action=action[held_out],
        observation_normalizer=observation_normalizer,
        action_normalizer=action_normalizer,
        reported=cut_reported(
            demonstrations, held_out_episodes[len(chosen_by) :], settings.n_obs_steps, settings.horizon
        )
        if offline
        else None,
    )
