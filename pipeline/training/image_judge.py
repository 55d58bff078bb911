"""Measure the distance of a model's images to the data, for choosing checkpoints and for tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.evaluation.features import ImageFeatures, embedded_features, inception_features
from pipeline.evaluation.fid import FeatureStatistics, reference_statistics
from pipeline.evaluation.generation import Distance, measure_distance
from pipeline.evaluation.image_models import ImageModel
from pipeline.evaluation.intervals import t_interval
from pipeline.evaluation.sample_metrics import real_sample
from pipeline.settings.images import ImageTaskSettings
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.images import load_images


@dataclass(frozen=True)
class Judge:
    """Statistics of a task's data in its feature space.

    Attributes:
        batch: images of a solve. real: features of real images, for further metrics; None: only the distance.
    """

    features: ImageFeatures
    reference: FeatureStatistics
    shape: tuple[int, int, int]
    batch: int
    real: Tensor | None = None

    def measure(
        self, model: ImageModel, solver: str, n_samples: int, seeds: Iterable[int], keep: Path | None, title: str
    ) -> dict[int, Distance]:
        """Measure the distance of ``n_samples`` images by ``solver``, for each sampling seed.

        Args:
            keep: folder of the state of an interrupted measurement; None: none is kept.
            title: of the progress bar.
        """
        model.to(self.features.device)
        return {
            seed: measure_distance(
                model,
                solver,
                shape=self.shape,
                n_samples=n_samples,
                batch=self.batch,
                seed=seed,
                features=self.features,
                reference=self.reference,
                real=self.real,
                keep=keep / f"{solver}-{seed}.statistics" if keep else None,
                title=f"{title} {solver} seed {seed}",
            )
            for seed in seeds
        }


def make_judge(files: ImageFiles, settings: ImageTaskSettings, sample_metrics: bool = False) -> Judge:
    """Build the judge by ``fid`` in the settings.

    With ``sample_metrics`` it measures KID, precision and recall of ``fid.n_samples`` images beside the distance.

    Raises:
        UserError: the images, the trained extractor or the weights of Inception are missing or damaged.
    """
    features = features_of(files, settings)
    images = load_images(files.images).images
    reference = reference_statistics(images, features, files.folder / "statistics")
    real = real_sample(images, features, settings.fid.n_samples) if sample_metrics else None
    return Judge(features, reference, settings.shape, settings.fid.batch, real)


def features_of(files: ImageFiles, settings: ImageTaskSettings) -> ImageFeatures:
    """Load the features that ``fid.features`` names; raises as ``make_judge``."""
    if settings.fid.features == "inception":
        return inception_features(files.inception)
    return embedded_features(files.extractor)


def summary(distances: Mapping[int, Distance]) -> dict[str, float]:
    """Return the mean distance over sampling seeds and its 95 % t-interval, as columns of a history."""
    interval = t_interval([distance.distance for distance in distances.values()])
    return {"distance": interval.mean, "distance_low": interval.low, "distance_high": interval.high}
