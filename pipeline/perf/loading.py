"""Time loading training windows from files against robomimic's data set and a sampler in diffusion_policy's style.

The work is one epoch: from the file to shuffled batches of conditions and actions, both normalised. Ours cuts all
windows at once and draws batches by index. The peers make one window at a time and collate.
"""

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.perf.comparison import Comparison, Floor, in_turns, median_seconds, nearly_equal
from pipeline.settings import schema
from pipeline.settings.schema import DataSettings
from pipeline.tasks.api import Task
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.loader import load_task
from pipeline.tasks.robomimic.actions import policy_actions
from pipeline.tasks.robomimic.env import observation_keys
from pipeline.training.data import PreparedData, prepare
from pipeline.training.loop import Batches

BATCH = 256
FOLDER = Path("data/demonstrations")

Batch = tuple[Tensor, Tensor]
"""Observations (B, To, D), encoded, and actions (B, Tp, A), neither normalised."""


def comparisons() -> Iterator[Comparison]:
    """Yield the comparisons: windows of Push-T from zarr and of Robomimic's Square from HDF5."""
    settings = schema.load()
    with TemporaryDirectory() as folder:
        store = Path(folder) / "pusht.zarr"
        _write_zarr(store, load_task("pusht").datasets["pusht_starter"].read(FOLDER / "pusht_starter.npz"))
        reading = _reading("arrays read at once by zarr", partial(_zarr_arrays, store))
        yield _Epoch("pusht", store, settings.starter.task("pusht").data, _sampled, reading).comparison(
            "200 demonstrations of Push-T in zarr", "a window at a time, as diffusion_policy's sampler"
        )
    store = FOLDER / "square_starter.hdf5"
    reading = _reading("observations and actions read by h5py", partial(_hdf5_arrays, store))
    yield _Epoch("square", store, settings.lab.task("square").data, _robomimic, reading).comparison(
        "40 demonstrations of Square in hdf5", "robomimic's SequenceDataset, all in memory"
    )


def _reading(what: str, read: Callable[[], object]) -> Floor:
    return Floor(f"the {what}, and nothing else", partial(median_seconds, read))


class _Epoch:
    """One epoch over the windows of a file, by ours and by a peer.

    Args:
        read: file, task, settings, shuffle → the peer's batches. floor: reading the file's arrays, nothing else.
    """

    def __init__(
        self,
        task: str,
        path: Path,
        settings: DataSettings,
        read: Callable[[Path, Task, DataSettings, bool], Iterator[Batch]],
        floor: Floor,
    ) -> None:
        self.spec = load_task(task)
        self.path = path
        self.settings = settings
        self.read = read
        self.floor = floor

    def comparison(self, work: str, peer: str) -> Comparison:
        work = f"an epoch of training windows, batch {BATCH}, from {work}"
        return Comparison(work, peer, 0.3, self.same, in_turns(self.ours, self.theirs), 7, floor=self.floor)

    def ours(self) -> None:
        data = self._prepared()
        batches, generator = Batches(data.condition, data.action), torch.Generator().manual_seed(0)
        windows = len(data.action) + len(data.held_out_action)
        for _ in range(-(-windows // BATCH)):
            batches.draw(BATCH, generator)

    def theirs(self) -> None:
        for _ in self.read(self.path, self.spec, self.settings, True):
            pass

    def same(self) -> str:
        """Compare the sorted random projections of all windows, so that their order does not matter."""
        data = self._prepared()
        condition = torch.cat([data.condition, data.held_out_condition])
        action = torch.cat([data.action, data.held_out_action])
        observed = condition.view(len(condition), self.settings.n_obs_steps, -1)
        ours = data.observation_normalizer.denormalize(observed), data.action_normalizer.denormalize(action)
        theirs = zip(*self.read(self.path, self.spec, self.settings, False), strict=True)
        a, b = _projected(*ours), _projected(*map(torch.cat, theirs))
        return nearly_equal(a, b, 1e-5, f"all {len(a)} windows")

    def _prepared(self) -> PreparedData:
        demonstrations = self.spec.datasets[self.settings.dataset].read(self.path)
        observe = self.spec.observations[self.settings.observation].encode
        return prepare(demonstrations, self.settings, observe, 0, self.spec.least_variation)


def _projected(observed: Tensor, action: Tensor) -> Tensor:
    rows = torch.cat([observed.flatten(1), action.flatten(1)], dim=1).double()
    weights = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows @ weights).sort().values


class _Sampled(Dataset[tuple[NDArray[np.float32], NDArray[np.float32]]]):
    """Arrays in memory; each window is sliced, padded at an episode's ends and copied one at a time."""

    def __init__(self, path: Path, spec: Task, settings: DataSettings) -> None:
        arrays = _zarr_arrays(path)
        self.observed = spec.observations[settings.observation].encode(arrays["data/state"])
        self.action = arrays["data/action"].astype(np.float32)
        self.before, self.length = settings.n_obs_steps - 1, settings.horizon
        self.windows = []
        start = 0
        for end in arrays["meta/episode_ends"].tolist():
            self.windows += [(start, row, end) for row in range(start, end)]
            start = end

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        start, row, end = self.windows[index]
        seen = self.observed[max(start, row - self.before) : row + 1]
        observed = np.empty((self.before + 1, *seen.shape[1:]), dtype=np.float32)
        observed[-len(seen) :], observed[: -len(seen)] = seen, seen[0]
        done = self.action[row : min(end, row + self.length)]
        action = np.empty((self.length, *done.shape[1:]), dtype=np.float32)
        action[: len(done)], action[len(done) :] = done, done[-1]
        return observed, action


def _zarr_arrays(path: Path) -> dict[str, NDArray[Any]]:
    group = zarr.open_group(path, mode="r")
    return {name: np.asarray(group[name]) for name in ("data/state", "data/action", "meta/episode_ends")}


def _hdf5_arrays(path: Path) -> list[NDArray[Any]]:
    used = ("actions", *(f"obs/{key}" for key in observation_keys("square")))
    with h5py.File(path) as file:
        return [demonstration[key][()] for demonstration in file["data"].values() for key in used]


def _sampled(path: Path, spec: Task, settings: DataSettings, shuffle: bool) -> Iterator[Batch]:
    """Yield batches as diffusion_policy's ``SequenceSampler`` under a ``DataLoader``."""
    yield from DataLoader(_Sampled(path, spec, settings), BATCH, shuffle=shuffle)


def _robomimic(path: Path, spec: Task, settings: DataSettings, shuffle: bool) -> Iterator[Batch]:
    """Yield batches of robomimic's data set, with ``hdf5_cache_mode`` ``all`` as in its low-dimensional settings."""
    del spec
    with redirect_stdout(StringIO()):
        from robomimic.utils.dataset import SequenceDataset

        keys = tuple(observation_keys("square"))
        windows = SequenceDataset(
            str(path),
            obs_keys=keys,
            dataset_keys=("actions",),
            frame_stack=settings.n_obs_steps,
            seq_length=settings.horizon,
            hdf5_cache_mode="all",
            load_next_obs=False,
        )
    for batch in DataLoader(windows, BATCH, shuffle=shuffle):
        observed = torch.cat([batch["obs"][key][:, : settings.n_obs_steps] for key in keys], dim=-1)
        newest = batch["actions"][:, settings.n_obs_steps - 1 :]
        yield observed.float(), torch.from_numpy(policy_actions(newest.numpy())).float()


def _write_zarr(path: Path, demonstrations: Demonstrations) -> None:
    """Write the layout of diffusion_policy's ``ReplayBuffer``."""
    group = zarr.open_group(path, mode="w")
    arrays = {"data/state": demonstrations.state, "data/action": demonstrations.action}
    for name, array in (arrays | {"meta/episode_ends": demonstrations.episode_ends}).items():
        group.create_array(name, data=array, chunks=(min(161, len(array)), *array.shape[1:]))
