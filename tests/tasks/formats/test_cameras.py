"""Videos of a data set's cameras: absent, whole, too short, damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import imageio.v2 as iio
import numpy as np
import pytest

from pipeline.tasks.formats.cameras import video_findings, videos_of
from pipeline.tasks.formats.description import describe
from pipeline.tasks.formats.reading import open_recording
from tests.tasks.formats.files import LENGTHS, episodes, write_v2, write_v3

CAMERA = "observation.images.top"
V3, V2 = f"videos/{CAMERA}/chunk-000/file-000.mp4", f"videos/chunk-000/{CAMERA}/episode_{{:06d}}.mp4"


def with_camera(folder: Path, write: Callable[..., Path]) -> Path:
    """A data set that says that it has a camera."""
    path = write(folder, episodes())
    info = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))
    info["features"][CAMERA] = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    (path / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    return path


def write_video(file: Path, frames: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with iio.get_writer(file, fps=10, macro_block_size=1) as writer:
        for shade in np.linspace(0, 255, frames):
            writer.append_data(np.full((16, 16, 3), shade, np.uint8))


def test_absent_videos_are_said_to_be_so_and_are_no_fault(tmp_path: Path) -> None:
    path = with_camera(tmp_path, write_v3)
    assert list(video_findings(open_recording(path), sum(LENGTHS))) == []
    assert f"{CAMERA}: video 16 x 16 x 3, no vector; no files of it are here" in describe(open_recording(path), path)


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_a_frame_a_step_is_right_and_another_number_is_told(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = with_camera(tmp_path, write)
    lengths = (sum(LENGTHS),) if write is write_v3 else LENGTHS
    files = [path / (V3 if write is write_v3 else V2.format(i)) for i in range(len(lengths))]
    for file, length in zip(files, lengths, strict=True):
        write_video(file, length)
    recording = open_recording(path)
    assert videos_of(recording) == {CAMERA: files}
    assert list(video_findings(recording, sum(LENGTHS))) == []
    write_video(files[0], lengths[0] - 2)
    expected = f"{CAMERA} has {sum(LENGTHS) - 2} frames of video for {sum(LENGTHS)} steps"
    assert list(video_findings(recording, sum(LENGTHS))) == [expected]
    assert f"- {expected}" in describe(recording, path)


def test_a_damaged_video_is_named(tmp_path: Path) -> None:
    path = with_camera(tmp_path, write_v3)
    write_video(path / V3, sum(LENGTHS))
    (path / V3).write_bytes((path / V3).read_bytes()[:300])
    (finding,) = video_findings(open_recording(path), sum(LENGTHS))
    assert finding.startswith(f"{path / V3} is no whole video: ") and "\n" not in finding
