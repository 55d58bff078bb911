"""Grids of images: pixel positions, atomic files and refusals."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from pipeline.evaluation import image_grid as grids
from pipeline.evaluation.image_grid import image_grid, tile


def images(count: int, channels: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 8, 8), (3, 32, 2), (3, 100, 1)])
def test_a_grid_holds_every_pixel_as_a_square(tmp_path: Path, channels: int, side: int, factor: int) -> None:
    given = images(5, channels, side)
    image_grid(given, 3, tmp_path / "grid.png")
    grid = iio.imread(tmp_path / "grid.png")
    large = side * factor
    assert grid.shape[:2] == (2 * large + 2, 3 * large + 4) and grid.ndim == (2 if channels == 1 else 3)
    grid = grid.reshape(*grid.shape[:2], channels)
    for number, image in enumerate(given):
        top, left = (number // 3) * (large + 2), (number % 3) * (large + 2)
        squares = grid[top : top + large, left : left + large].reshape(side, factor, side, factor, channels)
        assert (squares == image.transpose(1, 2, 0)[:, None, :, None]).all()
    assert (grid[large + 2 :, 2 * large + 4 :] == 255).all()  # the place of a sixth image


def test_a_grid_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "grid.png"
    image_grid(images(2, 1, 8), 2, path)
    before = path.read_bytes()

    def die_half_way(file: Path, *_: object, **__: object) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(grids.iio, "imwrite", die_half_way)
    with pytest.raises(OSError, match="disk full"):
        image_grid(images(3, 1, 8), 2, path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("wrong", "columns"),
    [
        (np.zeros((2, 1, 8, 8), dtype=np.float32), 2),
        (np.zeros((2, 2, 8, 8), dtype=np.uint8), 2),
        (np.zeros((0, 1, 8, 8), dtype=np.uint8), 2),
        (np.zeros((2, 8, 8), dtype=np.uint8), 2),
        (np.zeros((2, 1, 8, 8), dtype=np.uint8), 0),
    ],
)
def test_invalid_image_batches_are_refused(wrong: np.ndarray, columns: int) -> None:
    with pytest.raises(ValueError, match="a grid needs uint8 images"):
        tile(wrong, columns)
