"""Kernel distance, precision and recall of generated images, by torch-fidelity's own formulas on any features.

The Fréchet distance mixes how good images are with how varied they are. Precision is the share of generated images that
lie among the real ones, recall the share of real images that lie among the generated (Kynkäänniemi et al. 2019). The
kernel distance (KID; Binkowski et al. 2018) has no bias by the number of images. As with the Fréchet distance, numbers
of different features cannot be compared.
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
NEIGHBOURS = 3  # radius of an image's ball, in neighbours; torch-fidelity's default
_ROWS = 2000  # images compared at once


@dataclass(frozen=True)
class SampleMetrics:
    """Attributes:
    kid: squared kernel distance, mean over subsets; 0 for equal distributions, where it may come out below.
    precision, recall: shares, 0 to 1; they depend on the number of images.
    """

    kid: float
    precision: float
    recall: float


def sample_metrics(generated: Tensor, real: Tensor) -> SampleMetrics:
    """Compare as many features of generated as of real images, (N, D) each.

    Raises:
        UserError: their numbers differ, since precision and recall depend on them, or there are no more than
            ``NEIGHBOURS``.
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
    """The features (``count``, D) of that many random images of (N, C, H, W), uint8, the same in every call.

    Raises:
        UserError: there are fewer.
    """
    if count > len(images):
        raise UserError(
            f"fid.n_samples: given {count}, allowed with fid.sample_metrics: at most {len(images)}, all real images"
        )
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(0, "real sample")))[:count]
    return features(torch.from_numpy(images[rows.sort().values.numpy()]))
