"""Image-conditioned training: encoder and field from scratch, later the field alone on encoded data."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation.image_policy import ImageConditioning, ImagePolicy
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.nets.mlp import MLP
from pipeline.nets.residual import PlainResidual
from pipeline.nets.vision import ImageConditioned, VisionEncoder
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.pusht.camera import render
from pipeline.tasks.pusht.env import observe
from pipeline.training.data import PreparedData
from pipeline.training.frames import ImageBatches, write_no_frames
from pipeline.training.image_conditioning import as_seen, from_scratch
from pipeline.training.loop import Batches
from pipeline.utils.errors import UserError

POSITION = partial(observe, kind="agent")
HORIZONS = {"n_obs_steps": 1, "horizon": 4, "n_action_steps": 2}


def net(condition: int) -> MLP:
    return MLP(4, 2, condition, width=16, depth=1, expansion=2, time_features=8)


def data() -> PreparedData:
    one = Normalizer(2)
    return PreparedData(torch.rand(6, 2), torch.rand(6, 4, 2), torch.rand(3, 2), torch.rand(3, 4, 2), one, one)


def test_state_policy_trains_on_its_prepared_data(tmp_path: Path) -> None:
    policy, given = FlowPolicy(net(2), POSITION, Normalizer(2), Normalizer(2), **HORIZONS), data()
    trained, batches = from_scratch(policy, given, tmp_path / "nowhere")
    assert trained is policy.net
    assert isinstance(batches, Batches) and batches.condition is given.condition and batches.data is given.action
    assert as_seen(policy, given, tmp_path / "nowhere") is given


def test_image_policy_trains_with_its_encoder_and_needs_a_frame_store(tmp_path: Path) -> None:
    import zarr

    encoder = VisionEncoder(width=16, crop=32)
    conditioning = ImageConditioning(encoder, render, POSITION)
    policy, given = ImagePolicy(net(130), conditioning, Normalizer(2), Normalizer(2), **HORIZONS), data()
    write_no_frames(tmp_path / "none.zarr")
    for use in (from_scratch, as_seen):
        with pytest.raises(UserError, match=r"none.zarr: no store of frames; expected what stage prepare writes$"):
            use(policy, given, tmp_path / "none.zarr")
    group = zarr.open_group(tmp_path / "frames.zarr", mode="w")
    group.create_array("images", data=np.random.default_rng(0).integers(256, size=(9, 96, 96, 3), dtype=np.uint8))
    group.create_array("windows", data=np.arange(6)[:, None])
    group.create_array("held_out_windows", data=np.arange(6, 9)[:, None])
    trained, batches = from_scratch(policy, given, tmp_path / "frames.zarr")
    assert isinstance(trained, ImageConditioned) and isinstance(batches, ImageBatches)
    assert trained.encoder is encoder and trained.field is policy.net and batches.crop == 32
    seen = as_seen(policy, given, tmp_path / "frames.zarr")
    assert seen.condition.shape == (6, 130) and seen.held_out_condition.shape == (3, 130)
    assert torch.equal(seen.condition[:, -2:], given.condition)
    beyond = ResidualPolicy(policy, PlainResidual(net(130)), [1.0, 2.0])
    assert torch.equal(as_seen(beyond, given, tmp_path / "frames.zarr").condition, seen.condition)
