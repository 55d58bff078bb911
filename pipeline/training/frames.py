"""Store camera images in zarr, read them one by one for training windows, and encode them once for fine-tuning."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.evaluation.image_policy import ImageConditioning
from pipeline.evaluation.policy import FlowPolicy
from pipeline.nets.modes import evaluating
from pipeline.nets.vision import VisionEncoder, joined, pack, random_crops
from pipeline.settings.schema import DataSettings
from pipeline.tasks.demonstrations import Demonstrations, ImageDemonstrations
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.types import Observe
from pipeline.training.data import PreparedData, prepare
from pipeline.training.resume import fingerprint
from pipeline.utils.atomic import make_folder, replacing
from pipeline.utils.errors import UserError

BLOCK = 256
"""Number of images read at once, and of images in one file of the store."""

_IMAGES, _WINDOWS, _HELD_OUT = "images", "windows", "held_out_windows"


@dataclass(frozen=True, eq=False)
class Frames:
    """N images of a data set, and the frames of each window.

    A frame is read from the store once and then kept in memory, compressed to a thirtieth of its size: zarr takes 1 ms
    for a request and 0.25 ms for each chunk, however small.

    Attributes:
        images: (N, H, W, 3) uint8, in the store.
        windows, held_out_windows: numbers of the frames, (W, To) and (W', To) int64, oldest first.
    """

    images: zarr.Array
    windows: Tensor
    held_out_windows: Tensor
    _kept: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Frames:
        """Open a store that ``prepare_frames`` wrote.

        Raises:
            UserError: ``path`` has no such store.
        """
        try:
            group = zarr.open_group(path, mode="r")
            images, windows, held_out = (_array(group, name) for name in (_IMAGES, _WINDOWS, _HELD_OUT))
        except (OSError, ValueError, KeyError):
            raise UserError(f"{path}: no store of frames; expected what stage prepare writes") from None
        return cls(images, torch.from_numpy(np.asarray(windows[:])), torch.from_numpy(np.asarray(held_out[:])))

    def read(self, numbers: Tensor) -> Tensor:
        """Return the frames of integer ``numbers`` (…) as (…, H, W, 3) uint8. No other frame is read."""
        wanted = numbers.flatten().tolist()
        for first, end in _runs(sorted(set(wanted) - self._kept.keys())):
            for number, image in enumerate(np.asarray(self.images[first:end]), start=first):
                self._kept[number] = zlib.compress(image.tobytes(), level=1)
        found = [torch.frombuffer(bytearray(zlib.decompress(self._kept[n])), dtype=torch.uint8) for n in wanted]
        return torch.stack(found).view(*numbers.shape, *self.images.shape[1:])

    def recorded(self, states: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return the frames (…, H, W, 3) of states (…, S) that end in a frame's number."""
        return self.read(torch.from_numpy(states[..., -1].round().astype(np.int64))).numpy()


class RecordedImageConditioning(ImageConditioning):
    """``ImageConditioning`` of states that end in a frame's number; a call encodes each frame once."""

    def __init__(self, conditioning: ImageConditioning, frames: Frames) -> None:
        super().__init__(conditioning.encoder, frames.recorded, conditioning.observe)

    def forward(self, states: NDArray[np.floating]) -> NDArray[np.float32]:
        different, place = np.unique(states.reshape(-1, states.shape[-1]), axis=0, return_inverse=True)
        return super().forward(different)[place].reshape(*states.shape[:-1], -1)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Split ascending ``numbers`` into runs without gaps, each (first, last + 1)."""
    cuts = [at for at in range(1, len(numbers)) if numbers[at] > numbers[at - 1] + 1]
    bounds = [0, *cuts, len(numbers)] if numbers else []
    return [(numbers[start], numbers[end - 1] + 1) for start, end in pairwise(bounds)]


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise KeyError(name)
    return array


def write_no_frames(path: Path) -> None:
    """Write an empty store for a data set without images, since the store is an output of the stage."""
    shutil.rmtree(path, ignore_errors=True)
    zarr.open_group(path, mode="w")


def prepare_frames(
    source: ImageDemonstrations,
    settings: DataSettings,
    observe: Observe,
    seed: int,
    path: Path,
    least_variation: float = 1e-6,
    *,
    offline: bool = False,
) -> PreparedData:
    """Write the frames of ``source`` to the new store ``path``, atomically, and return their windows.

    A chunk has one image, so that each can be read alone, and a file has ``BLOCK`` images.

    Args:
        observe: returns the numbers beside the images. least_variation, offline: as of ``prepare``.

    Returns:
        Windows as from ``prepare``, with those numbers as conditions; states of reported windows end in the number of
        their frame, see ``Frames.recorded``.

    Raises:
        UserError: as ``prepare`` and ``ImageDemonstrations.blocks``.
    """
    numbers = observe(source.demonstrations.state)
    data, windows, held_out = _numbered_windows(
        numbers, source.demonstrations, settings, seed, least_variation, offline=offline
    )
    make_folder(path.parent)
    fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        group = zarr.open_group(fresh, mode="w")
        group.create_array(_WINDOWS, data=windows)
        group.create_array(_HELD_OUT, data=held_out)
        _write_images(group, source)
        fresh.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return data


def _numbered_windows(
    numbers: NDArray[np.float32],
    demonstrations: Demonstrations,
    settings: DataSettings,
    seed: int,
    least_variation: float,
    *,
    offline: bool,
) -> tuple[PreparedData, NDArray[np.int64], NDArray[np.int64]]:
    """Return the windows of ``numbers`` (N, P), and the frames of the training and the held-out windows.

    ``prepare`` gets each frame's number as one more observed component, from which the windows' frames are read.
    """
    count = numbers.shape[1]
    frame = np.arange(len(numbers), dtype=np.float32)[:, None]  # exact and distinct far beyond a million
    numbered = replace(demonstrations, state=np.concatenate([numbers, frame], axis=1))
    data = prepare(numbered, settings, lambda states: states.astype(np.float32), seed, least_variation, offline=offline)

    def split(condition: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
        observed = condition.unflatten(1, (settings.n_obs_steps, count + 1))
        frames = data.observation_normalizer.denormalize(observed)[..., count].round().long()
        return observed[..., :count].flatten(1).contiguous(), frames.numpy()

    condition, windows = split(data.condition)
    held_out_condition, held_out = split(data.held_out_condition)
    normalizer = data.observation_normalizer
    of_numbers = replace(
        data,
        condition=condition,
        held_out_condition=held_out_condition,
        observation_normalizer=Normalizer.of(normalizer.offset[:count], normalizer.scale[:count]),
    )
    return of_numbers, windows, held_out


def _write_images(group: zarr.Group, source: ImageDemonstrations) -> None:
    n_frames = len(source.demonstrations.state)
    array, start = None, 0
    with tqdm(total=n_frames, desc="frames", unit="image") as bar:
        for block in source.blocks(BLOCK):
            shape = block.shape[1:]
            if array is None:
                array = group.create_array(
                    _IMAGES, shape=(n_frames, *shape), chunks=(1, *shape), shards=(BLOCK, *shape), dtype=np.uint8
                )
            array[start : start + len(block)] = block
            start += len(block)
            bar.update(len(block))


@dataclass(frozen=True, eq=False)
class ImageBatches:
    """Random training windows with randomly cropped images; a ``BatchSource`` of packed conditions.

    Attributes:
        frames: read when needed. data: the windows' numbers and actions. crop: side of the cropped images.
    """

    frames: Frames
    data: PreparedData
    crop: int
    device: torch.device | str = "cpu"

    def to(self, device: torch.device) -> ImageBatches:
        """Return these batches on ``device``."""
        return replace(self, device=device)

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``size`` windows with replacement; return packed conditions (B, ·) and actions (B, Tp, A)."""
        rows = torch.randint(len(self.data.action), (size,), generator=generator)
        wanted = self.frames.windows[rows]
        images = random_crops(self.frames.read(wanted), self.crop, generator)
        numbers = self.data.condition[rows].unflatten(1, (wanted.shape[1], -1))
        return pack(images, numbers).to(self.device), self.data.action[rows].to(self.device)


@torch.no_grad()
def encoded(
    frames: Frames, data: PreparedData, policy: FlowPolicy, *, held_out_only: bool = False, keep: Path | None = None
) -> PreparedData:
    """Return ``data`` with the conditions of the policy's field, from the middle of each image.

    Each frame is encoded once, on the GPU if there is one; ``policy`` is moved there.

    Args:
        data: numbers and actions, as from ``prepare_frames``.
        held_out_only: omit the training windows.
        keep: folder of finished blocks for a resume; blocks of another encoder are ignored.

    Raises:
        TypeError: ``policy`` does not observe images.
    """
    conditioning = policy.to("cuda" if torch.cuda.is_available() else "cpu").observe
    if not isinstance(conditioning, ImageConditioning):
        raise TypeError(f"policy observes by {conditioning}, must see")
    windows = frames.windows[: 0 if held_out_only else None]
    wanted, place = torch.cat([windows, frames.held_out_windows]).unique(return_inverse=True)
    features = _features(frames, wanted, conditioning.encoder, keep)[place]

    def condition(features: Tensor, positions: Tensor) -> Tensor:
        return joined(features, positions.unflatten(1, (features.shape[1], -1)))

    return replace(
        data,
        condition=condition(features[: len(windows)], data.condition[: len(windows)]),
        action=data.action[: len(windows)],
        held_out_condition=condition(features[len(windows) :], data.held_out_condition),
        observation_normalizer=policy.observation_normalizer,
    )


def _features(frames: Frames, wanted: Tensor, encoder: VisionEncoder, keep: Path | None) -> Tensor:
    """Encode the frames ``wanted`` (M,) to features (M, F)."""
    device = next(encoder.parameters()).device
    folder = keep / fingerprint(encoder, str(wanted.tolist()))[:16] if keep else None
    blocks = []
    for start in tqdm(range(0, len(wanted), BLOCK), desc="encode frames", unit="block", disable=None):
        path = folder / f"{start:07d}.npy" if folder else None
        if path is None or not path.exists():
            images = frames.read(wanted[start : start + BLOCK]).to(device)
            with evaluating(encoder):
                block = encoder(images).float().cpu()
            if path is not None:
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, block.numpy())
        else:
            block = torch.from_numpy(np.load(path))
        blocks.append(block)
    return torch.cat(blocks)
