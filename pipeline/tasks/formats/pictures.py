"""Read demonstrations with a camera's pictures, from videos or arrays, without holding all pictures in memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.camera import CHANNELS, squared
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.formats.recording import VIDEO, Array, Clip, Recording, last_line
from pipeline.tasks.formats.vectors import laid_end_to_end, read_vectors
from pipeline.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Pictures:
    """Demonstrations of N steps with the pictures of one camera, ``pipeline.tasks.demonstrations.ImageDemonstrations``.

    Attributes:
        recording: the source. camera: the camera's key there. side: pixels per side of the scaled pictures.
        lengths: steps of each usable episode, by its name.
        demonstrations: the observation and action vectors.
    """

    recording: Recording
    camera: str
    side: int
    lengths: dict[str, int]
    demonstrations: Demonstrations

    def blocks(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the pictures in order, ``size`` at a time: (≤ size, side, side, 3), RGB.

        Raises:
            UserError: a video is absent, damaged or too short, or an array holds other values than whole numbers from 0
                to 255.
        """
        waiting: list[NDArray[np.uint8]] = []
        for pictures in self._by_episode():
            waiting.append(squared(pictures, self.side))
            while sum(map(len, waiting)) >= size:
                together = np.concatenate(waiting)
                yield together[:size]
                waiting = [together[size:]]
        left = np.concatenate(waiting)
        if len(left):
            yield left

    def _by_episode(self) -> Iterator[NDArray[np.uint8]]:
        if self.recording.features[self.camera].dtype == VIDEO:
            clips = self.recording.clips(self.camera)
            yield from _frames((name, clips[name], length) for name, length in self.lengths.items())
            return
        for name in self.lengths:
            yield _as_bytes(name, self.camera, self.recording.episodes[name]([self.camera])[self.camera])


def open_pictures(recording: Recording, observation: Sequence[str], action: str, camera: str, side: int) -> Pictures:
    """Read the vectors, as ``read_demonstrations`` does, and find the pictures under the key ``camera``.

    Raises:
        UserError: as ``read_demonstrations``; the data set has no such camera, or a file of its videos is absent.
    """
    require_pictures(recording, camera)
    episodes = read_vectors(recording, observation, action)
    if recording.features[camera].dtype == VIDEO:
        clips = recording.clips(camera)
        absent = [clips[name].file for name in episodes if not clips[name].file.is_file()]
        if absent:
            raise UserError(f"{absent[0]}: is absent, though the data set lists it; fetch its videos too")
    lengths = {name: len(actions) for name, (_, actions) in episodes.items()}
    return Pictures(recording, camera, side, lengths, laid_end_to_end(recording, observation, action, episodes))


def require_pictures(recording: Recording, camera: str) -> None:
    """Raise a ``UserError`` if the key ``camera`` is absent or holds no pictures."""
    there = [key for key, feature in recording.features.items() if feature.is_picture]
    if camera not in there:
        allowed = ", ".join(there) or "none"
        raise UserError(f"{recording.path}: image key {camera!r} holds no pictures (H, W, 3); those that do: {allowed}")


def _as_bytes(name: str, camera: str, pictures: Array) -> NDArray[np.uint8]:
    as_bytes = pictures.astype(np.uint8)
    if pictures.dtype != np.uint8 and not np.array_equal(as_bytes, pictures):
        raise UserError(f"{name}: {camera} holds other values than whole numbers from 0 to 255")
    return as_bytes


def _frames(clips: Iterable[tuple[str, Clip, int]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of each clip (name, clip, T), (T, H, W, 3); a file is read once if its clips are in order."""
    file, at = None, 0
    frames: Iterator[NDArray[np.uint8]] = iter(())
    for name, clip, length in clips:
        if clip.file != file or clip.first < at:
            file, at, frames = clip.file, 0, _video(clip.file)
        taken: list[NDArray[np.uint8]] = []
        for frame in frames:
            at += 1
            if at > clip.first:
                taken.append(frame)
            if len(taken) == length:
                break
        if len(taken) < length:
            last = clip.first + length
            raise UserError(f"{clip.file}: ends after {at} frames; {name} has frames {clip.first} to {last - 1} of it")
        yield np.stack(taken)


def _video(file: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield every frame stored in a video, (H, W, 3); none is repeated or dropped to keep the frame rate."""
    from imageio_ffmpeg import read_frames

    try:
        with closing(read_frames(str(file), output_params=["-fps_mode", "passthrough"])) as reader:
            width, height = next(reader)["size"]
            for frame in reader:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, CHANNELS)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{file}: is no whole video: {last_line(error)}") from error
