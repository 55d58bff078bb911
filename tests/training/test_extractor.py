"""The embedded classifier learns digits reproducibly."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.features import EmbeddedNet
from pipeline.settings.images import ExtractorSettings
from pipeline.training.extractor import accuracy, classification
from pipeline.training.finetuning import run
from pipeline.utils.errors import UserError


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1797 digits, (N, 1, 8, 8) uint8 and (N,)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8))[:, None], torch.from_numpy(bunch.target)


def trained(
    images: Tensor, labels: Tensor, steps: int, seed: int = 0, held_out: float = 0.1
) -> tuple[EmbeddedNet, float]:
    """Return the classifier and its accuracy on held-out images."""
    settings = ExtractorSettings(
        channels=16,
        features=64,
        held_out=held_out,
        shift=0,
        steps=steps,
        batch_size=min(128, len(images)),
        lr=3e-3,
        weight_decay=1e-4,
        precision="fp32",
    )
    training, test = classification(images, labels, settings, flip=False, seed=seed)
    net = run(training, log=lambda _metrics, _step: None, state_path=None, title="extractor").net
    assert isinstance(net, EmbeddedNet)
    return net.cpu().eval(), accuracy(net, images[test], labels[test])


def test_digits_are_learned(digits: tuple[Tensor, Tensor]) -> None:
    net, held_out_accuracy = trained(*digits, steps=400)
    assert held_out_accuracy >= 0.95
    assert accuracy(net, *digits) >= 0.99


def test_seed_determines_weights_and_accuracy(digits: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(1)
    first = trained(*digits, steps=5)
    torch.manual_seed(2)
    same, other = trained(*digits, steps=5), trained(*digits, steps=5, seed=1)
    weights = [net.state_dict() for net, _ in (first, same, other)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not all(weights[0][name].equal(weights[2][name]) for name in weights[0])
    assert first[1] == same[1]


def test_classifier_takes_colour_images_of_32_pixels() -> None:
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net, _ = trained(images, torch.arange(40) % 4, steps=2)
    features, logits = net(images)
    assert (features.shape, logits.shape) == ((40, 64), (40, 4))


def test_float_images_and_empty_training_sets_are_refused(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    with pytest.raises(UserError, match=r"^images: given float32, allowed: uint8$"):
        trained(images.float(), labels, steps=1)
    with pytest.raises(UserError, match=r"^extractor\.held_out: given 0\.9999, which holds out 1797 of 1797"):
        trained(images, labels, steps=1, held_out=0.9999)
