"""The embedded classifier learns digits, and the same from the same seed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.training.extractor import TrainedExtractor, accuracy, train_extractor
from pipeline.utils.errors import UserError


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits, (N, 1, 8, 8) uint8 and (N,)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8))[:, None], torch.from_numpy(bunch.target)


def trained(images: Tensor, labels: Tensor, steps: int, seed: int = 0, held_out: float = 0.1) -> TrainedExtractor:
    return train_extractor(
        images, labels, channels=16, features=64, steps=steps, batch_size=128, lr=3e-3, seed=seed, held_out=held_out
    )


def test_digits_are_learned(digits: tuple[Tensor, Tensor]) -> None:
    made = trained(*digits, steps=400)
    assert made.held_out_accuracy >= 0.95
    assert accuracy(made.net, *digits) >= 0.99


def test_the_seed_decides_everything(digits: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(1)
    first = trained(*digits, steps=5)
    torch.manual_seed(2)
    same, other = trained(*digits, steps=5), trained(*digits, steps=5, seed=1)
    weights = [made.net.state_dict() for made in (first, same, other)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not all(weights[0][name].equal(weights[2][name]) for name in weights[0])
    assert first.held_out_accuracy == same.held_out_accuracy


def test_three_colours_and_a_larger_side() -> None:
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = train_extractor(images, torch.arange(40) % 4, channels=4, features=8, steps=2, batch_size=8, lr=1e-3, seed=0)
    features, logits = made.net(images)
    assert (features.shape, logits.shape) == ((40, 8), (40, 4))


def test_input_that_cannot_be_trained_on(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    with pytest.raises(UserError, match=r"^images: given float32, allowed: uint8$"):
        trained(images.float(), labels, steps=1)
    with pytest.raises(UserError, match=r"^extractor\.held_out: given 1\.0, which holds out 1797 of 1797"):
        trained(images, labels, steps=1, held_out=1.0)
