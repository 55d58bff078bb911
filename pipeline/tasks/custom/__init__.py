"""Make a task from params.yaml alone: any gymnasium environment, or none, and data sets of any known format."""

from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.api import Camera, Dataset, Demonstrations, EnvSpec, Observation, Publication, Task, TaskFamily
from pipeline.tasks.custom.env import GymnasiumEnv
from pipeline.tasks.custom.settings import CustomSettings, Environment, Source
from pipeline.tasks.demonstrations import ImageDemonstrations
from pipeline.tasks.formats.lerobot import INFO
from pipeline.tasks.formats.recording import Recording
from pipeline.utils.errors import UserError

NUMBERS = ("meta", "data")
"""Folders of a LeRobotDataset except the videos."""


def make_task(settings: CustomSettings) -> Task:
    """Make the task that a block ``custom`` describes. Data are read and the simulator is imported only when needed."""
    environment, (observed, action) = settings.environment, settings.dims
    envs = {}
    if environment:
        drawn = environment.render_mode is not None
        envs = {"": EnvSpec(partial(GymnasiumEnv, environment), environment.max_steps, renders=drawn)}
    observations = {"state": Observation(observed, as_they_are)}
    if settings.side:
        camera = Camera(observed, settings.side)
        observations = {
            "state": Observation(observed, camera.encode),
            "image": Observation(observed, camera.encode, camera.draw, camera),
        }
    return Task(
        title=environment.id if environment else next(iter(settings.datasets)),
        datasets={name: _dataset(name, source) for name, source in settings.datasets.items()},
        observations=observations,
        action_dim=action,
        envs=envs,
        check=partial(check_demonstrations, environment),
        expert="pipeline.experts.gymnasium_policy:policy_expert" if settings.expert else "",
    )


def as_they_are(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return raw states (…, S) unchanged, as float32."""
    return np.asarray(states, dtype=np.float32)


def check_demonstrations(environment: Environment | None, demonstrations: Demonstrations, horizon: int) -> None:
    """Refuse episodes shorter than ``horizon`` actions, and demonstrations that do not fit ``environment``.

    Raises:
        UserError: as ``require_windows`` and ``check_fit``.
    """
    from pipeline.tasks.custom.check import check_fit
    from pipeline.tasks.formats.vectors import require_windows

    require_windows(demonstrations, horizon)
    if environment:
        check_fit(environment, demonstrations)


def _dataset(name: str, source: Source) -> Dataset:
    published: tuple[Publication, ...] = ()
    local = Path(source.path) if source.path else None
    if source.url:
        file = PurePosixPath(urlsplit(source.url).path).name or name
        published = (Publication(file, sha256=source.sha256, url=source.url),)
    return Dataset(
        title=source.title or name,
        licence=source.licence,
        citation=source.citation or "not stated",
        read=partial(_read, name, source),
        publications=published,
        members=_members(source) if local and (local / INFO).is_file() else None,
        local=local,
        local_sha256=source.sha256,
        images=partial(_read_with_pictures, name, source) if source.image else None,
    )


def _members(source: Source) -> tuple[str, ...]:
    """List the folders needed of a LeRobotDataset; without its videos, which are most of its bytes, if unused."""
    return (*NUMBERS, "videos") if source.image else NUMBERS


def _read(name: str, source: Source, path: Path) -> Demonstrations:
    """Read the data set at ``path``, which may be a copy or an unpacked archive.

    Raises:
        UserError: as ``read_demonstrations``; or its keys have other sizes than ``source`` gives.
    """
    from pipeline.tasks.formats.vectors import read_demonstrations

    (action,) = source.action
    return read_demonstrations(_opened(name, source, path), list(source.observation), action)


def _read_with_pictures(name: str, source: Source, path: Path) -> ImageDemonstrations:
    """Read the data set with the camera's pictures; raises as ``_read``, and if it has no pictures."""
    from pipeline.tasks.formats.pictures import open_pictures

    (action,), ((camera, side),) = source.action, source.image.items()
    return open_pictures(_opened(name, source, path), list(source.observation), action, camera, side)


def _opened(name: str, source: Source, path: Path) -> Recording:
    from pipeline.tasks.formats.pictures import require_pictures
    from pipeline.tasks.formats.reading import open_recording

    recording = open_recording(path, source.format)
    for what, keys in (("observation", source.observation), ("action", source.action)):
        recording.require(what, list(keys))
        for key, size in keys.items():
            if recording.features[key].size != size:
                found = f"{recording.features[key].size} numbers a step in {path}"
                raise UserError(f"custom.datasets.{name}.{what}.{key}: given {size}, allowed: {found}")
    for key in source.image:
        require_pictures(recording, key)
    return recording


TASK = TaskFamily(CustomSettings, make_task)
