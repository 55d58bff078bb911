"""Find the cameras' videos of a LeRobotDataset and check that they are complete."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.tasks.formats.recording import VIDEO, Recording, last_line


def videos_of(recording: Recording) -> dict[str, list[Path]]:
    """Return the ordered files of each camera by its key; a file of v3.0 holds several episodes, of v2.1 one."""
    cameras = [key for key, feature in recording.features.items() if feature.dtype == VIDEO]
    patterns = ("videos/{}/*/*.mp4", "videos/*/{}/*.mp4")
    return {
        key: sorted(file for pattern in patterns for file in recording.path.glob(pattern.format(key)))
        for key in cameras
    }


def video_findings(recording: Recording, n_steps: int) -> Iterator[str]:
    """Yield a line for each camera whose existing videos are damaged or have too few or too many frames.

    Args:
        n_steps: steps of the whole data set; each has one frame.
    """
    from imageio_ffmpeg import count_frames_and_secs

    for key, files in videos_of(recording).items():
        n_frames = 0
        for file in files:
            try:
                n_frames += count_frames_and_secs(str(file))[0]
            except (RuntimeError, OSError) as error:
                yield f"{file} is no whole video: {last_line(error)}"
                break
        else:
            if files and n_frames != n_steps:
                yield f"{key} has {n_frames} frames of video for {n_steps} steps"
