"""Training the embedded feature extractor: a classifier of the task's own images, by the common training loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.evaluation.features import Architecture, EmbeddedNet, require_uint8
from pipeline.settings.schema import Optimization
from pipeline.training.images import mirrored, shifted
from pipeline.training.loop import Batches, Log, Objective, train
from pipeline.utils.errors import UserError
from pipeline.utils.precision import Precision
from pipeline.utils.seeding import Generators, derive

_ROWS = 1024  # images classified at once


class Classification(Objective):
    """The cross-entropy of a classifier; the condition carries the labels."""

    net: EmbeddedNet

    def __init__(self, net: EmbeddedNet) -> None:
        super().__init__()
        self.net = net
        self.figures: Mapping[str, Tensor] = {}

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, 1) labels, data: (B, C, H, W) uint8 → scalar loss."""
        _, logits = self.net(data)
        labels = condition[:, 0]
        self.figures = {"accuracy": (logits.argmax(1) == labels).float().mean()}
        return cross_entropy(logits, labels)


@dataclass(frozen=True)
class AugmentedBatches(Batches):
    """Random batches of labelled images, each mirrored and moved at random.

    Attributes:
        flip: whether each is mirrored with probability 1/2. shift: pixels that it is moved by at most.
    """

    flip: bool = False
    shift: int = 0

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labels (B, 1) and images (B, C, H, W), uint8."""
        labels, images = super().draw(size, generator)
        images = mirrored(images, generator) if self.flip else images
        return labels, shifted(images, self.shift, generator) if self.shift else images


@dataclass(frozen=True)
class TrainedExtractor:
    """A trained classifier, on the CPU, and the share of images never trained on that it classifies rightly."""

    net: EmbeddedNet
    held_out_accuracy: float


def train_extractor(
    images: Tensor,
    labels: Tensor,
    *,
    channels: int,
    features: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    held_out: float = 0.1,
    flip: bool = False,
    shift: int = 0,
    weight_decay: float = 1e-4,
    precision: Precision = "fp32",
    log: Log = lambda _metrics, _step: None,
    state_path: Path | None = None,
) -> TrainedExtractor:
    """Train an ``EmbeddedNet`` on all but a random ``held_out`` share of the images, and test it on that.

    The result depends on the arguments alone (on a GPU up to the order of its sums); a killed run resumes as ``train``.

    Args:
        images: (N, C, H, W) uint8. labels: (N,) integers from 0.
        channels, features: as in ``Architecture``. flip, shift: as in ``AugmentedBatches``.

    Raises:
        UserError: images that are not uint8; no image is left for training or for the test.
    """
    require_uint8(images)
    labels = labels.long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(seed, "held out")))
    count = round(held_out * len(images))
    if not 0 < count < len(images):
        raise UserError(
            f"extractor.held_out: given {held_out}, which holds out {count} of {len(images)} images, allowed: a share "
            "that leaves some for training and for the test"
        )
    test, training = order[:count], order[count:]
    channel_count, height, width = images.shape[1:]
    architecture = Architecture((channel_count, height, width), int(labels.max()) + 1, channels, features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "extractor"))
        net = EmbeddedNet(architecture)
    optimization = Optimization(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        warmup=min(100, steps),
        max_grad_norm=1.0,
        ema_decay=0.0,
        precision=precision,
    )
    batches = AugmentedBatches(labels[training, None], images[training], flip, shift)
    generators = Generators(seed, "extractor")
    trained = train(
        Classification(net), batches, optimization, generators, log=log, state_path=state_path, title="extractor"
    )
    assert isinstance(trained, EmbeddedNet)
    trained = trained.cpu().eval()
    return TrainedExtractor(trained, accuracy(trained, images[test], labels[test]))


@torch.no_grad()
def accuracy(net: EmbeddedNet, images: Tensor, labels: Tensor) -> float:
    """The share of ``images`` (N, C, H, W), uint8, that ``net`` gives the right one of ``labels`` (N,)."""
    right = [
        (net(part)[1].argmax(1) == truth).float()
        for part, truth in zip(images.split(_ROWS), labels.split(_ROWS), strict=True)
    ]
    return torch.cat(right).mean().item()
