"""Images inside raw observations: stored losslessly, and scaled without a shift."""

import numpy as np
import pytest

from pipeline.tasks.camera import Camera, squared

CAMERA = Camera(numbers=3, side=16)
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


def test_raw_observation_contains_numbers_and_image() -> None:
    raw = np.stack([CAMERA.observed(np.arange(3) + i, picture) for i, picture in enumerate(PICTURES)])
    assert raw.shape == (2, CAMERA.raw_dim)
    np.testing.assert_array_equal(CAMERA.encode(raw), [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(CAMERA.draw(raw), PICTURES)
    np.testing.assert_array_equal(CAMERA.draw(raw.reshape(1, 2, -1).astype(np.float32)), PICTURES[None])


@pytest.mark.parametrize("shape", [(48, 64), (16, 96), (8, 8)])
def test_scaling_keeps_a_linear_ramp(shape: tuple[int, int]) -> None:
    height, width = shape
    ramp = np.broadcast_to((np.arange(width) + 0.5)[None, :, None] * 255 / width, (height, width, 3)).round()
    scaled = squared(ramp[None].astype(np.uint8), 16)[0].astype(float)
    expected = (np.arange(16) + 0.5) * 255 / 16
    np.testing.assert_allclose(scaled[:, 1:-1].mean((0, 2)), expected[1:-1], atol=1.5)
    np.testing.assert_allclose(scaled, np.broadcast_to(scaled[0], scaled.shape), atol=1)
    assert scaled[0, 0, 0] < 25 and scaled[0, -1, 0] > 230, "both edges are in the image"
