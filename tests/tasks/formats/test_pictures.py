"""Camera images of a recording: one for each step, from videos or arrays."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.tasks.formats.pictures import open_pictures
from pipeline.tasks.formats.reading import open_recording
from pipeline.utils.errors import UserError
from tests.tasks.formats.files import (
    CAMERA,
    LENGTHS,
    V2_VIDEO,
    V3_VIDEO,
    episodes,
    with_camera,
    write_npz,
    write_v2,
    write_v3,
    write_video,
    write_zarr,
)

SHADES = np.linspace(0, 255, sum(LENGTHS)).round()
ENDS = np.cumsum(LENGTHS)


def filmed(folder: Path, write: Callable[..., Path]) -> Path:
    """Write a LeRobotDataset whose video frames are the ``SHADES`` in order."""
    path = with_camera(folder, write)
    if write is write_v3:
        write_video(path / V3_VIDEO, list(SHADES))
        return path
    for i, end in enumerate(ENDS):
        write_video(path / V2_VIDEO.format(i), list(SHADES[end - LENGTHS[i] : end]))
    return path


def pictured(dtype: Any) -> list[dict[str, NDArray[Any]]]:
    """Return episodes with an array ``img`` of images of the ``SHADES``, 16 × 32 pixels."""
    given = episodes()
    for episode, shades in zip(given, np.split(SHADES, ENDS[:-1]), strict=True):
        episode["img"] = np.broadcast_to(shades[:, None, None, None], (len(shades), 16, 32, 3)).astype(dtype)
    return given


def opened(path: Path, camera: str = CAMERA, observation: Sequence[str] = ("observation.state",)) -> Any:
    return open_pictures(open_recording(path), list(observation), "action", camera, 32)


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_each_step_gets_its_video_frame(tmp_path: Path, write: Callable[..., Path]) -> None:
    source = opened(filmed(tmp_path, write))
    blocks = list(source.blocks(10))
    assert [block.shape for block in blocks] == [(10, 32, 32, 3), (10, 32, 32, 3), (4, 32, 32, 3)]
    np.testing.assert_allclose(np.concatenate(blocks).mean((1, 2, 3)), SHADES, atol=2)  # videos are lossy
    np.testing.assert_array_equal(source.demonstrations.state, np.concatenate([each["state"] for each in episodes()]))


def test_frames_of_skipped_episodes_are_skipped(tmp_path: Path) -> None:
    path = filmed(tmp_path, write_v2)
    (path / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="left out 1 of 3 episodes"):
        source = opened(path)
    kept = np.delete(SHADES, np.arange(LENGTHS[0], ENDS[1]))
    np.testing.assert_allclose(np.concatenate(list(source.blocks(256))).mean((1, 2, 3)), kept, atol=2)


@pytest.mark.parametrize(("write", "dtype"), [(write_npz, np.uint8), (write_zarr, np.float32)])
def test_image_arrays_are_read_exactly(tmp_path: Path, write: Callable[..., Path], dtype: Any) -> None:
    source = opened(write(tmp_path, pictured(dtype)), "img", ["state"])
    pictures = np.concatenate(list(source.blocks(7)))
    np.testing.assert_array_equal(pictures, np.broadcast_to(SHADES[:, None, None, None], (len(SHADES), 32, 32, 3)))


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_absent_and_short_videos_are_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = filmed(tmp_path, write)
    last = path / (V3_VIDEO if write is write_v3 else V2_VIDEO.format(2))
    length = sum(LENGTHS) if write is write_v3 else LENGTHS[2]
    write_video(last, list(SHADES[: length - 2]))
    with pytest.raises(UserError, match=f"ends after {length - 2} frames; .*: episode 2 has frames") as caught:
        list(opened(path).blocks(10))
    assert str(caught.value).startswith(f"{last}: ")
    last.unlink()
    with pytest.raises(UserError, match="is absent, though the data set lists it; fetch its videos too"):
        opened(path)


def test_keys_without_images_and_invalid_pixels_are_refused(tmp_path: Path) -> None:
    path = filmed(tmp_path, write_v3)
    with pytest.raises(UserError, match=rf"image key 'action' holds no pictures .H, W, 3.; those that do: {CAMERA}"):
        opened(path, "action")
    with pytest.raises(UserError, match="episode 0: img holds other values than whole numbers from 0 to 255"):
        given = [each | {"img": each["img"] + 0.5} for each in pictured("f4")]
        list(opened(write_npz(tmp_path, given), "img", ["state"]).blocks(9))
