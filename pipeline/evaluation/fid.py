"""Compute Fréchet distances between sets of images, by torch-fidelity's formula on statistics of batches.

The distance of two sets is that of the Gaussians with the means and covariances of their features (Fréchet 1957; Dowson
& Landau 1982; as FID: Heusel et al. 2017): ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½). Its upward bias is about proportional
to the inverse of the number of samples, so only distances with equal sample counts may be compared.
"""

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from tqdm import tqdm

from pipeline.evaluation.features import ImageFeatures
from pipeline.tasks.images import split_halves
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError

_ROWS = 1024  # images in a batch of features

log = logging.getLogger(__name__)


class FeatureStatistics:
    """Accumulate the mean and covariance of feature vectors batch by batch, in float64.

    Batches are joined by the pairwise update of Chan, Golub & LeVeque (1979), with sums of products of *centred*
    features. Unlike sums of squares, these lose no digits if the mean is far larger than the spread.

    Attributes:
        count: number of vectors, n. mean: (D,). scatter: (D, D), Σ_i (f_i − mean)(f_i − mean)ᵀ.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    def update(self, features: Tensor) -> None:
        """Add a batch of features, (B, D)."""
        rows = features.detach().cpu().double().numpy()
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        shift, total = mean - self.mean, self.count + len(rows)
        self.scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), the unbiased estimate with n − 1, as ``numpy.cov``; NaN for fewer than two vectors."""
        return self.scatter / (self.count - 1) if self.count > 1 else np.full_like(self.scatter, np.nan)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays, for ``of``."""
        return {"count": np.array(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "FeatureStatistics":
        """Restore the statistics from ``arrays``."""
        statistics = cls(len(arrays["mean"]))
        statistics.count = int(arrays["count"])
        statistics.mean, statistics.scatter = arrays["mean"], arrays["scatter"]
        return statistics


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Compute the Fréchet distance of two sets of at least two vectors each, by torch-fidelity's own formula."""
    statistics = [{"mu": each.mean, "sigma": each.covariance} for each in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def require_count(key: str, count: int, features: ImageFeatures) -> None:
    """Refuse sets so small that the covariance of their features is singular: n vectors have rank n − 1 at most.

    Raises:
        UserError: the set is too small; the message names ``key``.
    """
    if count <= features.dimension:
        raise UserError(
            f"{key}: given {count}, allowed: at least {features.dimension + 1}, one more than the features of "
            f"{features.title}, below which the covariance is singular"
        )


def image_statistics(images: np.ndarray, features: ImageFeatures, title: str = "features") -> FeatureStatistics:
    """Compute the statistics of ``images``, (N, C, H, W) uint8; raises as ``ImageFeatures``."""
    statistics = FeatureStatistics(features.dimension)
    for _, part in _features(images, features, title):
        statistics.update(part)
    return statistics


def reference_statistics(images: np.ndarray, features: ImageFeatures, cache: Path | None) -> FeatureStatistics:
    """Compute the statistics of the real images once, and cache them.

    Args:
        images: (N, C, H, W) uint8.
        cache: folder for the statistics, under a hash of images and features. (torch-fidelity's own cache uses only a
            name, and would return those of another set.) A damaged file is computed again. None: no cache.

    Raises:
        UserError: there are too few images, or as ``ImageFeatures``.
    """
    require_count("images", len(images), features)
    path = cache / f"{_fingerprint(images, features)}.statistics" if cache else None
    if path and (arrays := read_arrays(path)):
        return FeatureStatistics.of(arrays)
    statistics = image_statistics(images, features, "reference")
    if path:
        write_arrays(path, statistics.arrays())
    return statistics


def halves_distances(images: np.ndarray, features: ImageFeatures, seeds: Sequence[int]) -> list[float]:
    """Compute distances between two random disjoint halves of real images, one for each seed of a split.

    Perfect samples would have this distance with N/2 images in both sets, so it is the floor of a model's distance.

    Args:
        images: (N, C, H, W) uint8; the features of each are computed once for all splits.

    Raises:
        UserError: there are too few images, or as ``ImageFeatures``.
    """
    require_count("images in a half", len(images) // 2, features)
    sides = [_sides(len(images), seed) for seed in seeds]
    statistics = [[FeatureStatistics(features.dimension) for _ in range(2)] for _ in seeds]
    for start, part in _features(images, features, "halves"):
        for side, halves in zip(sides, statistics, strict=True):
            for half, each in enumerate(halves):
                each.update(part[torch.from_numpy(side[start : start + len(part)] == half)])
    return [frechet_distance(*halves) for halves in statistics]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to ``path`` atomically, with a checksum that ``read_arrays`` tests."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read a file of ``write_arrays``; None if there is none, None with a warning if it is damaged."""
    if not path.exists():
        return None
    content = path.read_bytes()
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        log.warning("%s: damaged, made anew", path)
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _features(images: np.ndarray, features: ImageFeatures, title: str) -> Iterator[tuple[int, Tensor]]:
    """Yield the features of ``images`` in parts, each with the index of its first row."""
    with tqdm(total=len(images), desc=title, unit="image", unit_scale=True) as bar:
        for start in range(0, len(images), _ROWS):
            part = features(torch.from_numpy(images[start : start + _ROWS]))
            yield start, part
            bar.update(len(part))


def _sides(count: int, seed: int) -> np.ndarray:
    """Assign each of ``count`` images to half 0 or 1, (N,); an image left over gets 2."""
    sides = np.full(count, 2)
    for half, rows in enumerate(split_halves(count, seed)):
        sides[rows] = half
    return sides


def _fingerprint(images: np.ndarray, features: ImageFeatures) -> str:
    digest = hashlib.sha256(f"{features.identity}/{images.dtype}/{images.shape}/".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()
