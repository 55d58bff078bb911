"""Fréchet distances, against the closed form, NumPy and torch-fidelity's own programs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from torch_fidelity import calculate_metrics, fidelity, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from pipeline.evaluation import fid
from pipeline.evaluation.features import (
    EMBEDDED,
    INCEPTION,
    EmbeddedExtractor,
    ImageFeatures,
    embedded_features,
    image_features,
)
from pipeline.evaluation.fid import (
    FeatureStatistics,
    frechet_distance,
    halves_distances,
    image_statistics,
    reference_statistics,
)
from pipeline.utils.errors import UserError
from tests.evaluation.test_features import saved

DIMENSION = 16
PER_FOLDER = 20


def gathered(features: np.ndarray, sizes: list[int]) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for part in np.split(features, np.cumsum(sizes)):
        statistics.update(torch.from_numpy(part))
    return statistics


def random_features(count: int, dimension: int, seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension)) + offset


def random_images(count: int, seed: int) -> np.ndarray:
    """Coloured noise, the colours differing with the seed."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(60, 190, (1, 3, 1, 1))
    return np.clip(means + 40 * rng.normal(size=(count, 3, 32, 32)), 0, 255).astype(np.uint8)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return saved(tmp_path / "extractor.safetensors", (3, 32, 32), features=DIMENSION)


@pytest.fixture
def features(weights: Path) -> ImageFeatures:
    return embedded_features(weights)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders of PNG images."""
    paths = [tmp_path / "first", tmp_path / "second"]
    for seed, path in enumerate(paths):
        path.mkdir()
        for i, image in enumerate(random_images(PER_FOLDER, seed)):
            Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{i:02}.png")
    return paths


def our_distance(features: ImageFeatures) -> float:
    """Return the distance between the images in ``folders``, without the check of their number."""
    return frechet_distance(*(image_statistics(random_images(PER_FOLDER, seed), features) for seed in (0, 1)))


@given(st.lists(st.integers(0, 9), max_size=6), st.sampled_from([0.0, 1e6]))
def test_batches_of_any_size_give_numpys_covariance(sizes: list[int], offset: float) -> None:
    features = random_features(60, 5, seed=0, offset=offset)
    statistics, expected = gathered(features, sizes), fid_features_to_statistics(torch.from_numpy(features))
    assert statistics.count == 60
    np.testing.assert_allclose(statistics.mean, expected["mu"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.covariance, expected["sigma"], rtol=1e-7, atol=1e-8)


def test_the_distance_is_the_closed_form() -> None:
    first = gathered(random_features(200, 6, seed=0), [50])
    second = gathered(random_features(300, 6, seed=1, offset=0.7), [120, 7])
    root = sqrtm(first.covariance @ second.covariance)
    expected = ((first.mean - second.mean) ** 2).sum() + np.trace(first.covariance + second.covariance - 2 * root.real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-5, 5))
def test_distance_of_commuting_gaussians_is_the_closed_form(a: float, b: float, shift: float) -> None:
    base = gathered(random_features(100, 4, seed=2), [])
    covariance = base.covariance

    def scaled(factor: float, mean: float) -> FeatureStatistics:
        return FeatureStatistics.of({"count": np.array(2), "mean": np.full(4, mean), "scatter": factor**2 * covariance})

    expected = 4 * shift**2 + (a - b) ** 2 * np.trace(covariance)
    assert frechet_distance(scaled(a, 0.0), scaled(b, shift)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_parity_with_calculate_metrics(
    weights: Path, features: ImageFeatures, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY", FEATURE_EXTRACTORS_REGISTRY)
    monkeypatch.delitem(FEATURE_EXTRACTORS_REGISTRY, EMBEDDED, raising=False)
    register_feature_extractor(EMBEDDED, EmbeddedExtractor)
    theirs = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        fid=True,
        feature_extractor=EMBEDDED,
        feature_extractor_weights_path=str(weights),
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert our_distance(features) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


@pytest.fixture
def random_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random weights of Inception's architecture."""
    path = tmp_path / "weights.pth"
    with torch.random.fork_rng(), monkeypatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(FeatureExtractorInceptionV3(INCEPTION, ["64"]).state_dict(), path)
    return path


def test_parity_with_the_fidelity_command(
    random_inception: Path,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--fid", "--json", "--no-cache", "--silent", "--save-cpu-ram", "--feature-layer-fid", "64"]
    arguments += ["--feature-extractor-weights-path", str(random_inception)]
    arguments += ["--input1", str(folders[0]), "--input2", str(folders[1])]
    monkeypatch.setattr(sys, "argv", ["fidelity", *arguments])
    fidelity.main()
    theirs = json.loads(capsys.readouterr().out)["frechet_inception_distance"]
    features = image_features(FeatureExtractorInceptionV3, INCEPTION, "64", random_inception, 64, "FD")
    assert our_distance(features) == pytest.approx(theirs, rel=1e-6)


def test_reference_statistics_are_cached_and_remade_when_damaged(
    features: ImageFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = fid.image_statistics
    monkeypatch.setattr(fid, "image_statistics", lambda *args: made.append(1) or original(*args))
    cache = tmp_path / "cache"
    images = random_images(30, 0)
    first = reference_statistics(images, features, cache)
    again = reference_statistics(images.copy(), features, cache)
    assert len(made) == 1
    assert again.count == 30
    assert np.array_equal(again.mean, first.mean)
    assert np.array_equal(again.covariance, first.covariance)

    (file,) = cache.iterdir()
    content = file.read_bytes()
    for damaged in (b"", content[:-1], content[:600] + bytes([content[600] ^ 1]) + content[601:]):
        file.write_bytes(damaged)
        reference_statistics(images, features, cache)
        assert file.read_bytes() == content
    assert len(made) == 4

    images[0, 0, 0, 0] ^= 1
    reference_statistics(images, features, cache)
    assert len(made) == 5


def test_too_few_images_are_refused(features: ImageFeatures) -> None:
    with pytest.raises(UserError, match=f"^images: given {DIMENSION}, allowed: at least {DIMENSION + 1}, "):
        reference_statistics(random_images(DIMENSION, 0), features, None)
    with pytest.raises(UserError, match=f"^images in a half: given {DIMENSION}, allowed: at least {DIMENSION + 1}, "):
        halves_distances(random_images(2 * DIMENSION + 1, 0), features, [0])


def test_halves_are_disjoint_and_splits_differ(features: ImageFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(61, 0)
    together = halves_distances(images, features, [0, 1])
    assert together[0] != together[1]

    monkeypatch.setattr(fid, "_ROWS", 10)
    parts = [image_statistics(images[rows], features) for rows in fid.split_halves(61, 1)]
    assert [part.count for part in parts] == [30, 30]
    assert halves_distances(images, features, [1])[0] == pytest.approx(frechet_distance(*parts), rel=1e-6)
    assert together[1] == pytest.approx(frechet_distance(*parts), rel=1e-6)
