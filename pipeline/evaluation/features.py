"""Extract features of images for Fréchet distances, by two torch-fidelity extractors.

``inception-v3-compat`` is torch-fidelity's own; its distance is the FID of Heusel et al. (2017). The embedded extractor
is a small classifier trained on the task's own images. It needs no download and suits 8×8 digits. Its distance is
called FD, never FID, because numbers of different features cannot be compared.

torch-fidelity does not check the dtype for extractors that are not its own. Images in [-1, 1] would then give a
plausible wrong number, so every call is checked here.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.tasks.images import as_float
from pipeline.tasks.inception import check_inception
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError

INCEPTION = "inception-v3-compat"
EMBEDDED = "flowtune-embedded"
"""Names in torch-fidelity's registry. The second is registered only by users that need it there."""

_ROWS = 64  # images of one call, as torch-fidelity's own default: Inception enlarges each to 299×299
_HEADER = "flowtune_extractor"
_VERSION = 1


@dataclass(frozen=True)
class Architecture:
    """Architecture of an ``EmbeddedNet``.

    Attributes:
        shape: (C, H, W) of the images. classes: number of labels.
        channels: of the first convolution; each halving of the image doubles them.
        features: width of the last layer but one, the dimension of the distance.
    """

    shape: tuple[int, int, int]
    classes: int
    channels: int
    features: int


class EmbeddedNet(nn.Module):
    """Convolutional classifier: it halves the image until its side is at most 4, then applies two linear layers.

    The features keep the spatial layout of the last map; a global average would lose it.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        channels, *size = architecture.shape
        width = architecture.channels
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(1, width), nn.SiLU()]
        while max(size) > 4:
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(1, 2 * width), nn.SiLU()]
            width, size = 2 * width, [(side + 1) // 2 for side in size]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size[0] * size[1], architecture.features))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(architecture.features, architecture.classes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, C, H, W) uint8 → features (B, F) and logits (B, K), float32.

        Raises:
            UserError: the images have another dtype or shape.
        """
        require_uint8(images)
        if tuple(images.shape[1:]) != tuple(self.architecture.shape):
            raise UserError(
                f"images: given shape {tuple(images.shape[1:])}, "
                f"allowed: {tuple(self.architecture.shape)}, which the feature extractor was trained on"
            )
        features = self.body(as_float(images))
        return features, self.head(features)


class EmbeddedExtractor(FeatureExtractorBase):
    """An ``EmbeddedNet`` in the form of torch-fidelity's extractors.

    ``register_feature_extractor(EMBEDDED, …)`` makes it known to
    ``calculate_metrics(feature_extractor=EMBEDDED, feature_extractor_weights_path=FILE)``.

    Args:
        name, features_list: as of every torch-fidelity extractor.
        feature_extractor_weights_path: a file of ``save_extractor``.

    Raises:
        UserError: as ``load_extractor``.
    """

    def __init__(
        self, name: str, features_list: Sequence[str], feature_extractor_weights_path: str | Path, **_: Any
    ) -> None:
        super().__init__(name, list(features_list))
        self.net, _record = load_extractor(Path(feature_extractor_weights_path))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: (B, C, H, W) uint8 → the layers of ``features_list``, float32; raises as ``EmbeddedNet``."""
        layers = dict(zip(self.get_provided_features_list(), self.net(images), strict=True))
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers."""
        return "penultimate", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Name of the layer that torch-fidelity's ``metric`` uses by default."""
        return "logits" if metric == "isc" else "penultimate"

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False: calls check their input, and results should not depend on a compiler."""
        return False


@dataclass(frozen=True)
class ImageFeatures:
    """One layer of a torch-fidelity extractor, ready to use.

    Attributes:
        extractor: returns only this layer; already on ``device``.
        title: name for people. distance: name of a Fréchet distance in these features, ``FID`` or ``FD``.
        identity: a hash of name, layer, weights and kind of device, which identifies the features; convolutions differ
            in their last digits between kinds of devices.
        dimension: D.
    """

    extractor: FeatureExtractorBase
    title: str
    distance: str
    identity: str
    dimension: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) uint8, on any device → (B, D) float64 on the CPU.

        Raises:
            UserError: the images have another dtype, or a shape that the extractor does not accept.
        """
        require_uint8(images)
        parts = [self.extractor(part.to(self.device))[0].cpu().double() for part in images.split(_ROWS)]
        return torch.cat(parts)


def inception_features(weights: Path) -> ImageFeatures:
    """Load the 2048 pooled features of Inception that define FID.

    The weights are a pickle, which torch-fidelity loads without restrictions, so only the published file is accepted.

    Raises:
        UserError: ``weights`` is missing or is not the published file.
    """
    check_inception(weights)
    return image_features(FeatureExtractorInceptionV3, INCEPTION, "2048", weights, 2048, "FID")


def embedded_features(path: Path) -> ImageFeatures:
    """Load the penultimate features of the classifier in a file of ``save_extractor``.

    Raises:
        UserError: as ``load_extractor``.
    """
    dimension = load_extractor(path)[0].architecture.features
    return image_features(EmbeddedExtractor, EMBEDDED, "penultimate", path, dimension, "FD")


def image_features(
    kind: type[FeatureExtractorBase], name: str, layer: str, weights: Path, dimension: int, distance: str
) -> ImageFeatures:
    """Load one ``layer`` of any torch-fidelity extractor with weights from a file, on a GPU if there is one.

    Args:
        kind, name: the extractor's class, and its name in torch-fidelity's registry.
        weights: must be a trusted file, because torch-fidelity loads it.
        dimension, distance: as in ``ImageFeatures``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = kind(name, [layer], feature_extractor_weights_path=str(weights)).to(device)
    contents = hashlib.sha256(weights.read_bytes()).hexdigest()
    identity = hashlib.sha256("/".join((name, layer, contents, device.type)).encode()).hexdigest()
    return ImageFeatures(extractor, f"{name} {layer}", distance, identity, dimension, device)


def require_uint8(images: Tensor) -> None:
    """Refuse images that are not uint8.

    Raises:
        UserError: the images have another dtype; the message names it.
    """
    if images.dtype != torch.uint8:
        raise UserError(f"images: given {str(images.dtype).removeprefix('torch.')}, allowed: uint8")


def save_extractor(path: Path, net: EmbeddedNet, **record: float | str) -> None:
    """Write ``net`` to ``path`` as safetensors, atomically, with its architecture and ``record`` in the header.

    Args:
        record: facts about its training, such as its held-out accuracy.
    """
    header = {"version": _VERSION, "architecture": asdict(net.architecture), "record": record}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_bytes(path, save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def load_extractor(path: Path) -> tuple[EmbeddedNet, dict[str, float | str]]:
    """Load the classifier in a file of ``save_extractor``, on the CPU in evaluation mode, and its record.

    Raises:
        UserError: the file does not exist, or is not a readable feature extractor of this project.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a feature extractor")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
        if header["version"] != _VERSION:
            raise UserError(f"{path}: written by another version of FlowTune; allowed: format {_VERSION}")
        architecture = header["architecture"] | {"shape": tuple(header["architecture"]["shape"])}
        net = EmbeddedNet(Architecture(**architecture))
        net.load_state_dict(load(path.read_bytes()))
        return net.eval(), header["record"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: no readable feature extractor: {detail:.300}") from None
