"""Define Push-T: push a T-shaped block onto its goal pose, observed as a state or by a camera."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.tasks.api import Dataset, Demonstrations, EnvSpec, Observation, Options, PaperFacts, Publication, Task
from pipeline.tasks.datasets import own_datasets
from pipeline.tasks.demonstrations import ImageDemonstrations
from pipeline.tasks.pusht.camera import render
from pipeline.tasks.pusht.env import ACTION_DIM, MAX_STEPS, OBSERVATION_DIM, PushT, Starts, initial_state, observe

# Without the images, which are 96 % of the bytes and not needed by state policies.
STATE_MEMBERS = (".zgroup", "data/.zgroup", "data/state", "data/action", "meta/.zgroup", "meta/episode_ends")


class PushTOptions(Options):
    """Options of resets, see ``PushT.reset``."""

    reset_order: Literal["exact", "legacy"] = "exact"


def _read(path: Path) -> Demonstrations:
    from pipeline.tasks.pusht.files import read_pusht

    return read_pusht(path)


def _images(path: Path) -> ImageDemonstrations:
    from pipeline.tasks.pusht.images import open_pusht_images

    return open_pusht_images(path)


def _read_with_images(path: Path) -> Demonstrations:
    return _images(path).demonstrations


def _reset_arguments(starts: Starts, seed: int, options: PushTOptions) -> Mapping[str, Any]:
    return {"state": initial_state(starts, seed), "order": options.reset_order}


HUMAN = Dataset(
    title="Push-T human demonstrations, 206 episodes, 25 650 steps",
    licence="MIT (that of the Diffusion Policy code it was published with)",
    citation="Chi et al., Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, RSS 2023",
    read=_read,
    episodes=206,
    publications=(
        Publication(
            name="pusht_cchi_v7_replay.zarr.zip",
            sha256="5d573bc4bd6f28c3668ef6959b0e0a0db715fda655d25a8d00a9699c4d40397f",
        ),
        Publication(name="pusht_cchi_v7_replay.zarr"),
        Publication(
            name="pusht.zip",
            root="pusht/pusht_cchi_v7_replay.zarr",
            url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        ),
    ),
    members=STATE_MEMBERS,
    content_sha256="788b4e0fafabac71d12c8b6fef24097227c887b572eb60dcfa2a2ed260db7cf1",
)

TASK = Task(
    title="Push-T",
    datasets={
        "pusht_starter": own_datasets("pusht", "Push-T", ".npz", 200, _read)["pusht_starter"],
        "pusht_human": HUMAN,
        "pusht_human_image": replace(
            HUMAN,
            title=f"{HUMAN.title}, with images",
            read=_read_with_images,
            members=(*STATE_MEMBERS, "data/img"),
            images=_images,
        ),
    },
    observations={
        "keypoints": Observation(OBSERVATION_DIM["keypoints"], partial(observe, kind="keypoints")),
        "pose": Observation(OBSERVATION_DIM["pose"], partial(observe, kind="pose")),
        "image": Observation(OBSERVATION_DIM["agent"], partial(observe, kind="agent"), render),
    },
    action_dim=ACTION_DIM,
    envs={
        "a": EnvSpec(PushT, MAX_STEPS, partial(_reset_arguments, "a")),
        "b": EnvSpec(PushT, MAX_STEPS, partial(_reset_arguments, "b")),
    },
    options=PushTOptions,
    robots=1,
    objects=1,
    paper=PaperFacts(
        dataset="pusht_human_image",
        columns={"a": 0, "b": 1},
        observations=("image",),
        d1=(8, 16, "1x96x96", "ConditionalUnet1D", 80, "ResNet-18", 11, 1e-4, 5e-6),
        d2=(1, 1, 2, 200, 300, True),
    ),
)
