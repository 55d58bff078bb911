"""Select the trained net, the batches and the conditions of a policy, with or without images."""

from pathlib import Path

from torch import nn

from pipeline.evaluation.image_policy import ImageConditioning, ImagePolicy
from pipeline.evaluation.policy import FlowPolicy
from pipeline.training.data import PreparedData
from pipeline.training.frames import Frames, ImageBatches, encoded
from pipeline.training.loop import Batches, BatchSource


def from_scratch(policy: FlowPolicy, data: PreparedData, frames: Path) -> tuple[nn.Module, BatchSource]:
    """Return the net to train from random weights, image encoder included, and its batches.

    Args:
        data: as prepared. frames: the store of its images, for an image policy.

    Raises:
        UserError: the store of an image policy is missing.
    """
    if isinstance(policy, ImagePolicy):
        return policy.seeing(), ImageBatches(Frames.open(frames), data, policy.observe.encoder.crop)
    return policy.net, Batches(data.condition, data.action)


def as_seen(
    policy: FlowPolicy, data: PreparedData, frames: Path, *, held_out_only: bool = False, keep: Path | None = None
) -> PreparedData:
    """Return ``data`` with the conditions of the policy's field; unchanged for a policy without images.

    Args:
        data, frames: as of ``from_scratch``. held_out_only, keep: as of ``encoded``.

    Raises:
        UserError: as ``from_scratch``.
    """
    if isinstance(policy.observe, ImageConditioning):  # a residual policy too, which observes as its base
        return encoded(Frames.open(frames), data, policy, held_out_only=held_out_only, keep=keep)
    return data
