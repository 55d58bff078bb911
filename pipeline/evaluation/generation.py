"""Generate images block by block and measure their distance to real ones, resumable to the bit.

The images of a run are cut into blocks of ``batch``. The noise of block b, and the generator of any further noise, come
only from the run's seed and b, and a block is always solved whole. So an image depends only on (seed, batch, its
index): n samples are the first n of any larger number, and an interruption changes nothing.

``batch`` does change results, so it belongs to a row's identity: the noise is drawn by blocks, and the error norm of
dopri5 is over the whole batch. All images of a block therefore share its steps and its NFE. The NFE of a run is the
mean over its samples, each counted with that of its block.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.evaluation.features import ImageFeatures
from pipeline.evaluation.fid import FeatureStatistics, frechet_distance, read_arrays, require_count, write_arrays
from pipeline.evaluation.sample_metrics import SampleMetrics, sample_metrics
from pipeline.nets.modes import evaluating
from pipeline.tasks.images import as_bytes
from pipeline.utils.seeding import derive

SAVE_EVERY_S = 20.0

Shape = tuple[int, int, int]
"""(C, H, W)."""


class Sampler(Protocol):
    """The interface of an image model that generation uses."""

    def sample(self, noise: Tensor, solver: str, generator: torch.Generator) -> tuple[Tensor, float]:
        """Turn standard normal noise (B, C, H, W), float32 on the CPU, into images in [-1, 1] of the same shape.

        Args:
            solver: such as ``euler-100``.
            generator: on the CPU; draws further noise.

        Returns:
            The images, on any device, and the NFE: function evaluations per sample.
        """


@dataclass(frozen=True)
class Distance:
    """A measured Fréchet distance.

    Attributes:
        distance: FID or FD, according to the features. nfe: mean function evaluations per sample.
        n_samples: number of images generated.
        metrics: further metrics, if requested.
    """

    distance: float
    nfe: float
    n_samples: int
    metrics: SampleMetrics | None = None


def measure_distance(
    sampler: Sampler,
    solver: str,
    *,
    shape: Shape,
    n_samples: int,
    batch: int,
    seed: int,
    features: ImageFeatures,
    reference: FeatureStatistics,
    real: Tensor | None = None,
    keep: Path | None = None,
    title: str = "generate",
) -> Distance:
    """Generate ``n_samples`` images and measure their distance to ``reference``; only one block is in memory at a time.

    Args:
        batch: images of a block; changes results, see above.
        real: features (n_samples, D) of real images, to measure KID, precision and recall against; None: not measured.
        keep: file for the statistics so far, written every ``SAVE_EVERY_S`` seconds and at the end; a second call
            resumes from it. It belongs to one model: choose its path accordingly, and delete it once the result is
            written. A damaged file is ignored and replaced.
        title: of the progress bar.

    Raises:
        UserError: ``n_samples`` does not exceed the features' dimension.
        ValueError: ``keep`` is of a run with other settings.
        FloatingPointError: the sampler returned images that are not finite.
    """
    require_count("n_samples", n_samples, features)
    settings = {"solver": solver, "shape": shape, "n_samples": n_samples, "batch": batch, "seed": seed}
    described = settings | {"features": features.identity} | ({} if real is None else {"kept": "features"})
    run = _Run(keep, json.dumps(described), features.dimension, keep_features=real is not None)
    blocks = image_blocks(
        sampler, solver, shape=shape, n_samples=n_samples, batch=batch, seed=seed, start=run.next_block
    )
    done = run.statistics.count
    with tqdm(total=n_samples, initial=done, desc=title, unit="image", unit_scale=True) as bar:
        for images, nfe in blocks:
            run.add(features(images), nfe)
            bar.update(len(images))
    run.save()
    metrics = None if real is None else sample_metrics(run.features, real)
    return Distance(frechet_distance(run.statistics, reference), run.evaluations / n_samples, n_samples, metrics)


@torch.no_grad()
def image_blocks(
    sampler: Sampler, solver: str, *, shape: Shape, n_samples: int, batch: int, seed: int, start: int = 0
) -> Iterator[tuple[Tensor, float]]:
    """Yield blocks ``start``, ``start`` + 1, … of a run's images, (≤ batch, C, H, W) uint8, each with its NFE.

    The last block is solved whole too; its images beyond ``n_samples`` are dropped.

    Raises:
        FloatingPointError: the sampler returned images that are not finite.
    """
    for block in range(start, -(-n_samples // batch)):
        noise_generator = torch.Generator().manual_seed(derive(seed, "image noise", block))
        solver_generator = torch.Generator().manual_seed(derive(seed, "image solver", block))
        noise = torch.randn((batch, *shape), generator=noise_generator)
        diverged = f"the sampler returned images that are not finite: {solver}, block {block}"
        try:
            with evaluating(sampler):
                images, nfe = sampler.sample(noise, solver, solver_generator)
        except FloatingPointError as error:
            raise FloatingPointError(f"{diverged} ({error})") from None
        if not images.isfinite().all():
            raise FloatingPointError(diverged)
        yield as_bytes(images[: n_samples - block * batch]), nfe


class _Run:
    """The accumulated state of a run, stored at ``path`` if there is one.

    Args:
        keep_features: whether to keep each image's ``features`` (N, D), float32, besides their statistics.

    Raises:
        ValueError: the file is of a run with other ``settings``.
    """

    def __init__(self, path: Path | None, settings: str, dimension: int, keep_features: bool = False) -> None:
        self.path = path
        self.settings = settings
        self.next_block = 0
        self.evaluations = 0.0  # over all samples
        self.statistics = FeatureStatistics(dimension)
        self._parts = [torch.empty(0, dimension)] if keep_features else []
        self._saved_at = time.monotonic()
        if path and (arrays := read_arrays(path)):
            if str(arrays["settings"]) != settings:
                raise ValueError(f"keep: {path} is of a run with other settings; remove it or name another file")
            self.next_block = int(arrays["next_block"])
            self.evaluations = float(arrays["evaluations"])
            self.statistics = FeatureStatistics.of(arrays)
            self._parts = [torch.from_numpy(arrays["features"])] if keep_features else []

    @property
    def features(self) -> Tensor:
        return torch.cat(self._parts)

    def add(self, features: Tensor, nfe: float) -> None:
        """Add the next block."""
        self.statistics.update(features)
        if self._parts:
            self._parts.append(features.float())
        self.evaluations += nfe * len(features)
        self.next_block += 1
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        if self.path is None:
            return
        numbers = {"next_block": self.next_block, "evaluations": self.evaluations, "settings": self.settings}
        arrays = self.statistics.arrays() | {key: np.array(value) for key, value in numbers.items()}
        write_arrays(self.path, arrays | ({"features": self.features.numpy()} if self._parts else {}))
        self._saved_at = time.monotonic()
