"""Feature extractors: accepted images, file round trip and identity."""

from pathlib import Path

import pytest
import torch

from pipeline.evaluation.features import (
    _ROWS,
    EMBEDDED,
    Architecture,
    EmbeddedExtractor,
    EmbeddedNet,
    embedded_features,
    inception_features,
    load_extractor,
    save_extractor,
)
from pipeline.utils.errors import UserError

SHAPES = [(1, 8, 8), (3, 32, 32)]


def saved(
    path: Path, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0, features: int = 16, **record: float
) -> Path:
    """Save an untrained extractor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_extractor(path, EmbeddedNet(Architecture(shape, classes=10, channels=4, features=features)), **record)
    return path


def random_images(shape: tuple[int, int, int], count: int = 5) -> torch.Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_file_round_trip_restores_net_record_and_features(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    path = saved(tmp_path / "extractor.safetensors", shape, held_out_accuracy=0.5)
    net, record = load_extractor(path)
    images = random_images(shape, 70)  # more than one call
    features = embedded_features(path)
    assert record == {"held_out_accuracy": 0.5}
    assert (features.distance, features.dimension) == ("FD", 16)
    assert features(images).dtype == torch.float64
    expected = torch.cat([net(part)[0] for part in images.split(_ROWS)])
    assert torch.equal(features(images).float().to(expected), expected)


def test_layers_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "extractor.safetensors")
    images = random_images((1, 8, 8))
    logits, features = EmbeddedExtractor(EMBEDDED, ["logits", "penultimate"], path)(images)
    assert (logits.shape, features.shape) == ((5, 10), (5, 16))
    assert EmbeddedExtractor(EMBEDDED, ["penultimate"], path)(images)[0].equal(features)


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    first, same, other = (saved(tmp_path / f"{i}.safetensors", seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert embedded_features(first).identity == embedded_features(same).identity
    assert embedded_features(first).identity != embedded_features(other).identity


def test_only_uint8_images_of_the_right_shape_are_accepted(tmp_path: Path) -> None:
    features = embedded_features(saved(tmp_path / "extractor.safetensors"))
    with pytest.raises(UserError, match=r"^images: given float32, allowed: uint8$"):
        features(random_images((1, 8, 8)).float())
    with pytest.raises(UserError, match=r"^images: given shape \(3, 32, 32\), allowed: \(1, 8, 8\)"):
        features(random_images((3, 32, 32)))


@pytest.mark.parametrize("defect", ["absent", "text", "truncated", "foreign", "version", "header"])
def test_damaged_extractor_files_are_refused_in_one_line(tmp_path: Path, defect: str) -> None:
    from safetensors.torch import save_file

    path = saved(tmp_path / "extractor.safetensors")
    content = path.read_bytes()
    match defect:
        case "absent":
            path.unlink()
        case "text":
            path.write_text("hello", encoding="utf-8")
        case "truncated":
            path.write_bytes(content[:-10])
        case "foreign":
            save_file({"weight": torch.zeros(1)}, path)
        case "version":
            path.write_bytes(content.replace(rb"\"version\": 1", rb"\"version\": 2"))
        case "header":
            path.write_bytes(content.replace(rb"\"features\": 16", rb"\"features\": 17"))
    with pytest.raises(UserError, match=f"^{path}: ") as caught:
        load_extractor(path)
    assert "\n" not in str(caught.value)


def test_inception_weights_with_another_checksum_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="wrong checksum"):
        inception_features(tmp_path / "weights.pth")
