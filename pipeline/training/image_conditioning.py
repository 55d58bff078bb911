"""One training for policies that see and those that do not: what is trained, on which batches and conditions."""

from pathlib import Path

from torch import nn

from pipeline.evaluation.image_policy import ImageConditioning, ImagePolicy
from pipeline.evaluation.policy import FlowPolicy
from pipeline.training.data import PreparedData
from pipeline.training.frames import Frames, ImageBatches, encoded
from pipeline.training.loop import Batches, BatchSource


def from_scratch(policy: FlowPolicy, data: PreparedData, frames: Path) -> tuple[nn.Module, BatchSource]:
    """What is trained from random weights, the encoder of images included, and its batches.

    Args:
        data: as prepared. frames: the store of its images, which only a policy that sees has need of.

    Raises:
        UserError: it sees, and there is no such store.
    """
    if isinstance(policy, ImagePolicy):
        return policy.seeing(), ImageBatches(Frames.open(frames), data, policy.observe.encoder.crop)
    return policy.net, Batches(data.condition, data.action)


def as_seen(
    policy: FlowPolicy, data: PreparedData, frames: Path, *, held_out_only: bool = False, keep: Path | None = None
) -> PreparedData:
    """``data`` with the conditions of the policy's field; of one that does not see, as it is.

    Args:
        data, frames: as of ``from_scratch``. held_out_only, keep: as of ``encoded``.

    Raises:
        UserError: as ``from_scratch``.
    """
    if isinstance(policy.observe, ImageConditioning):  # a residual's policy too, which has its base's
        return encoded(Frames.open(frames), data, policy, held_out_only=held_out_only, keep=keep)
    return data
