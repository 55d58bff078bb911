"""Kernel distance, precision and recall distinguish lost variety from bad images."""

import pytest
import torch

from pipeline.evaluation.sample_metrics import sample_metrics
from pipeline.utils.errors import UserError


def normal(seed: int, scale: float = 1.0, count: int = 200) -> torch.Tensor:
    return scale * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def test_metrics_distinguish_collapsed_and_scattered_samples() -> None:
    real = normal(0)
    same, collapsed, scattered = (sample_metrics(normal(1, scale), real) for scale in (1.0, 0.3, 4.0))
    assert abs(same.kid) < 0.02 < min(collapsed.kid, scattered.kid)
    assert min(same.precision, same.recall) > 0.6
    assert collapsed.precision > 0.95 and collapsed.recall < 0.3
    assert scattered.precision < 0.3


def test_unequal_sample_counts_are_refused() -> None:
    with pytest.raises(UserError, match=r"^images: given 200 generated and 10 real ones, allowed: equally many"):
        sample_metrics(normal(0), normal(0, count=10))
