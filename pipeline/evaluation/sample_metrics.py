"""Compute kernel distance, precision and recall of generated images, by torch-fidelity's formulas on any features.

The Fréchet distance mixes the quality of images with their diversity. Precision is the share of generated images that
lie among the real ones, recall the share of real images that lie among the generated ones (Kynkäänniemi et al. 2019).
The number of images does not bias the kernel distance (KID; Binkowski et al. 2018). As with the Fréchet distance,
numbers of different features cannot be compared.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from pipeline.evaluation.features import ImageFeatures
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import derive

SUBSET = 1000  # images of each of KID's subsets, torch-fidelity's default
NEIGHBOURS = 3  # an image's ball reaches its third neighbour; torch-fidelity's default
_ROWS = 2000  # images compared at once


@dataclass(frozen=True)
class SampleMetrics:
    """Metrics of a set of generated images.

    Attributes:
        kid: squared kernel distance, mean over subsets; 0 for equal distributions, where the estimate may be negative.
        precision, recall: shares, 0 to 1; they depend on the number of images.
    """

    kid: float
    precision: float
    recall: float


def sample_metrics(generated: Tensor, real: Tensor) -> SampleMetrics:
    """Compare the features of generated and of real images, (N, D) each.

    Raises:
        UserError: their numbers differ (precision and recall depend on them), or N is not above ``NEIGHBOURS``.
    """
    if len(generated) != len(real) or len(real) <= NEIGHBOURS:
        raise UserError(
            f"images: given {len(generated)} generated and {len(real)} real ones, allowed: equally many, more than "
            f"{NEIGHBOURS}"
        )
    size = min(SUBSET, len(real))
    kid = kid_features_to_metric(generated.double(), real.double(), kid_subset_size=size, verbose=False)
    shares = prc_features_to_metric(
        generated.float(),
        real.float(),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return SampleMetrics(kid[KEY_METRIC_KID_MEAN], shares[KEY_METRIC_PRECISION], shares[KEY_METRIC_RECALL])


def real_sample(images: np.ndarray, features: ImageFeatures, count: int) -> Tensor:
    """Compute the features (``count``, D) of random images of (N, C, H, W), uint8; every call takes the same images.

    Raises:
        UserError: N is less than ``count``.
    """
    if count > len(images):
        raise UserError(
            f"fid.n_samples: given {count}, allowed with fid.sample_metrics: at most {len(images)}, all real images"
        )
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(0, "real sample")))[:count]
    return features(torch.from_numpy(images[rows.sort().values.numpy()]))
