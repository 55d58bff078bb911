"""Findings about a data set's videos: absent, complete, too short, damaged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks.formats.cameras import video_findings, videos_of
from pipeline.tasks.formats.description import describe
from pipeline.tasks.formats.reading import open_recording
from tests.tasks.formats.files import CAMERA, LENGTHS, V2_VIDEO, V3_VIDEO, with_camera, write_v2, write_v3, write_video


def test_absent_videos_are_described_but_are_no_finding(tmp_path: Path) -> None:
    path = with_camera(tmp_path, write_v3)
    assert list(video_findings(open_recording(path), sum(LENGTHS))) == []
    assert f"{CAMERA}: video 16 x 16 x 3, no vector; no files of it are here" in describe(open_recording(path), path)


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_number_of_video_frames_must_equal_steps(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = with_camera(tmp_path, write)
    lengths = (sum(LENGTHS),) if write is write_v3 else LENGTHS
    files = [path / (V3_VIDEO if write is write_v3 else V2_VIDEO.format(i)) for i in range(len(lengths))]
    for file, length in zip(files, lengths, strict=True):
        write_video(file, np.linspace(0, 255, length))
    recording = open_recording(path)
    assert videos_of(recording) == {CAMERA: files}
    assert list(video_findings(recording, sum(LENGTHS))) == []
    write_video(files[0], np.linspace(0, 255, lengths[0] - 2))
    expected = f"{CAMERA} has {sum(LENGTHS) - 2} frames of video for {sum(LENGTHS)} steps"
    assert list(video_findings(recording, sum(LENGTHS))) == [expected]
    assert f"- {expected}" in describe(recording, path)


def test_damaged_video_is_reported(tmp_path: Path) -> None:
    path = with_camera(tmp_path, write_v3)
    write_video(path / V3_VIDEO, np.linspace(0, 255, sum(LENGTHS)))
    (path / V3_VIDEO).write_bytes((path / V3_VIDEO).read_bytes()[:300])
    (finding,) = video_findings(open_recording(path), sum(LENGTHS))
    assert finding.startswith(f"{path / V3_VIDEO} is no whole video: ") and "\n" not in finding
