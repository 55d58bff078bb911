"""Train the embedded feature extractor, a classifier of the task's own images."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.evaluation.features import Architecture, EmbeddedNet, require_uint8
from pipeline.settings.blocks import Optimization
from pipeline.settings.images import ExtractorSettings
from pipeline.training.finetuning import Training
from pipeline.training.images import mirrored, shifted
from pipeline.training.loop import Batches, Objective
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators, derive

_ROWS = 1024  # images classified at once


class Classification(Objective):
    """Cross-entropy of a classifier; the condition has the labels."""

    net: EmbeddedNet

    def __init__(self, net: EmbeddedNet) -> None:
        super().__init__()
        self.net = net
        self.metrics: Mapping[str, Tensor] = {}

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, 1) labels, data: (B, C, H, W) uint8."""
        _, logits = self.net(data)
        labels = condition[:, 0]
        self.metrics = {"accuracy": (logits.argmax(1) == labels).float().mean()}
        return cross_entropy(logits, labels)


@dataclass(frozen=True)
class AugmentedBatches(Batches):
    """Random batches of labelled images, each mirrored and shifted at random.

    Attributes:
        flip: whether to mirror each with probability 1/2. shift: largest shift in pixels.
    """

    flip: bool = False
    shift: int = 0

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw labels (B, 1) and images (B, C, H, W), uint8."""
        labels, images = super().draw(size, generator)
        images = mirrored(images, generator) if self.flip else images
        return labels, shifted(images, self.shift, generator) if self.shift else images


def classification(
    images: Tensor, labels: Tensor, settings: ExtractorSettings, *, flip: bool, seed: int
) -> tuple[Training, Tensor]:
    """Return the training of an ``EmbeddedNet`` on all but a random share of the images, and the indices of that share.

    Args:
        images: (N, C, H, W) uint8. labels: (N,) integers from 0. flip: as in ``AugmentedBatches``.

    Raises:
        UserError: the images are not uint8, or none is left for training or for the test.
    """
    require_uint8(images)
    labels = labels.long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(seed, "held out")))
    count = round(settings.held_out * len(images))
    if not 0 < count < len(images):
        raise UserError(
            f"extractor.held_out: given {settings.held_out}, which holds out {count} of {len(images)} images, allowed: "
            "a share that leaves some for training and for the test"
        )
    test, rest = order[:count], order[count:]
    channels, height, width = images.shape[1:]
    architecture = Architecture((channels, height, width), int(labels.max()) + 1, settings.channels, settings.features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "extractor"))
        net = EmbeddedNet(architecture)
    optimization = Optimization(
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        warmup=min(100, settings.steps),
        max_grad_norm=1.0,
        ema_decay=0.0,
        precision=settings.precision,
    )
    batches = AugmentedBatches(labels[rest, None], images[rest], flip, settings.shift)
    return Training(Classification(net), batches, Generators(seed, "extractor"), optimization), test


@torch.no_grad()
def accuracy(net: EmbeddedNet, images: Tensor, labels: Tensor) -> float:
    """Return the share of ``images`` (N, C, H, W), uint8, that ``net`` classifies as in ``labels`` (N,)."""
    right = [
        (net(part)[1].argmax(1) == truth).float()
        for part, truth in zip(images.split(_ROWS), labels.split(_ROWS), strict=True)
    ]
    return torch.cat(right).mean().item()
