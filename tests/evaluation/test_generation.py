"""Generation of images in blocks: reproducibility, resume and refusals."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation import generation
from pipeline.evaluation.features import ImageFeatures, embedded_features
from pipeline.evaluation.fid import FeatureStatistics, frechet_distance, image_statistics
from pipeline.evaluation.generation import Distance, Shape, image_blocks, measure_distance
from pipeline.evaluation.image_models import FlowModel
from pipeline.utils.errors import UserError
from tests.evaluation.test_features import saved

SHAPE: Shape = (1, 8, 8)
BATCH = 16


class Toy:
    """Images whose every pixel depends on the whole block, as dopri5's do, and on further noise; NFE 10, 11, …

    Args:
        dies_at: the call that raises.
    """

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        self.calls = 0

    def sample(self, noise: Tensor, solver: str, generator: torch.Generator) -> tuple[Tensor, float]:
        assert solver == "dopri5"
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        images = torch.tanh(noise + noise.mean() + 0.1 * torch.randn(noise.shape, generator=generator))
        return images, 9.0 + self.calls


@pytest.fixture
def features(tmp_path: Path) -> ImageFeatures:
    return embedded_features(saved(tmp_path / "extractor.safetensors", SHAPE, features=8))


@pytest.fixture
def reference(features: ImageFeatures) -> FeatureStatistics:
    images = torch.randint(256, (40, *SHAPE), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return image_statistics(images.numpy(), features)


def measured(
    sampler: Toy, features: ImageFeatures, reference: FeatureStatistics, n_samples: int = 70,
    keep: Path | None = None, seed: int = 0,
) -> Distance:  # fmt: skip
    return measure_distance(
        sampler, "dopri5", shape=SHAPE, n_samples=n_samples, batch=BATCH, seed=seed,
        features=features, reference=reference, keep=keep,
    )  # fmt: skip


def blocks(n_samples: int, seed: int = 0, start: int = 0) -> Tensor:
    made = image_blocks(Toy(), "dopri5", shape=SHAPE, n_samples=n_samples, batch=BATCH, seed=seed, start=start)
    return torch.cat([images for images, _ in made])


def test_the_distance_is_that_of_all_images_at_once(features: ImageFeatures, reference: FeatureStatistics) -> None:
    distance = measured(Toy(), features, reference)
    expected = frechet_distance(image_statistics(blocks(70).numpy(), features), reference)
    assert distance.distance == pytest.approx(expected, rel=1e-9)
    assert distance.n_samples == 70
    assert distance.nfe == pytest.approx((16 * (10 + 11 + 12 + 13) + 6 * 14) / 70)


@pytest.mark.parametrize("n_samples", [1, 16, 17, 70])
def test_fewer_samples_are_the_first_of_more(n_samples: int) -> None:
    assert blocks(n_samples).equal(blocks(80)[:n_samples])


def test_a_block_depends_on_its_number_and_the_seed() -> None:
    assert blocks(80, start=2).equal(blocks(80)[2 * BATCH :])
    assert not blocks(32)[:BATCH].equal(blocks(32)[BATCH:])
    assert not blocks(32).equal(blocks(32, seed=1))


def test_resumed_generation_equals_uninterrupted(
    features: ImageFeatures, reference: FeatureStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SAVE_EVERY_S", -1.0)
    keep = tmp_path / "kept" / "run"
    with pytest.raises(KeyboardInterrupt):
        measured(Toy(dies_at=3), features, reference, keep=keep)
    resumed = Toy()
    resumed.calls = 3  # its NFE continue
    assert measured(resumed, features, reference, keep=keep) == measured(Toy(), features, reference)
    assert resumed.calls == 5

    idle = Toy(dies_at=0)
    assert measured(idle, features, reference, keep=keep) == measured(Toy(), features, reference)


def test_saved_state_of_other_settings_is_refused_and_a_damaged_one_restarts(
    features: ImageFeatures, reference: FeatureStatistics, tmp_path: Path
) -> None:
    keep = tmp_path / "run"
    first = measured(Toy(), features, reference, keep=keep)
    with pytest.raises(ValueError, match=r"run with other settings"):
        measured(Toy(), features, reference, keep=keep, seed=1)
    keep.write_bytes(keep.read_bytes()[:-1])
    assert measured(Toy(), features, reference, keep=keep) == first


def test_too_few_samples_are_refused(features: ImageFeatures, reference: FeatureStatistics) -> None:
    with pytest.raises(UserError, match=r"^n_samples: given 8, allowed: at least 9, one more than the features of"):
        measured(Toy(dies_at=0), features, reference, n_samples=8)


class NotANumber(nn.Module):
    """A field that returns NaN from the middle on."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        del condition
        return torch.where(t[0] > 0.5, math.nan, self.rate) * x


@pytest.mark.parametrize("solver", ["euler-4", "dopri5"])
def test_non_finite_images_are_refused_by_every_solver(solver: str) -> None:
    with pytest.raises(
        FloatingPointError, match=f"^the sampler returned images that are not finite: {solver}, block 0"
    ):
        next(image_blocks(FlowModel(NotANumber()), solver, shape=SHAPE, n_samples=4, batch=4, seed=0))
