"""Images as conditions: ResNet-18 with group normalisation (Chi et al. 2023), and a velocity field conditioned on it.

A history of To observations, each an image and P numbers, is stored as one row of bytes, the *packed* condition: the
images' pixels, then the numbers as float32. So it can be used like any flat condition, and its pixels take a quarter
of their size as floats.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.utils.errors import UserError

_CHANNELS_PER_GROUP = 16


class VisionEncoder(nn.Module):
    """ResNet-18 without its classifier, from images to vectors of ``features`` = 8 ``width`` numbers.

    Group normalisation with 16 channels a group replaces batch normalisation, because batch statistics do not work with
    moving averages of weights. The weights start at random: nothing is downloaded.

    Args:
        width: channels of the first stage; 64 is ResNet-18 (11.2 M parameters), 16 is the minimum.
        crop: side in pixels of the square that is encoded: the middle of a larger image. In training ``random_crops``
            has cut such squares already.

    Raises:
        UserError: ``width`` is no multiple of 16.
    """

    def __init__(self, width: int = 64, crop: int = 84) -> None:
        super().__init__()
        if width < _CHANNELS_PER_GROUP or width % _CHANNELS_PER_GROUP:
            raise UserError(f"vision.width: given {width}, allowed: multiples of {_CHANNELS_PER_GROUP}")
        self.crop = crop
        self.features = 8 * width
        self.net = _resnet18(width)

    def forward(self, images: Tensor) -> Tensor:
        """images: (..., S, S, 3), uint8, S at least ``crop`` → (..., ``features``).

        Raises:
            ValueError: the images are smaller.
        """
        images = centre_crop(images, self.crop)
        pixels = images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.net(pixels).view(*images.shape[:-3], self.features)


def _resnet18(width: int) -> nn.Module:
    """Build torchvision's ResNet-18 up to the global average pooling, with ``width`` channels in place of 64."""
    from torchvision.models.resnet import BasicBlock  # here: it takes seconds

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(channels // _CHANNELS_PER_GROUP, channels)

    def stage(inp: int, out: int) -> nn.Module:
        stride = out // inp
        skip = nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), norm(out)) if stride > 1 else None
        return nn.Sequential(BasicBlock(inp, out, stride, skip, norm_layer=norm), BasicBlock(out, out, norm_layer=norm))

    widths = [width, width, 2 * width, 4 * width, 8 * width]
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), norm(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    stages = [stage(inp, out) for inp, out in pairwise(widths)]
    net = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def random_crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut a random square (B, To, ``size``, ``size``, 3) from each history (B, To, S, S, 3).

    All To images of a history have the same square, so that motion between them is kept.

    Raises:
        ValueError: the images are smaller.
    """
    room = _room(images, size)
    corner = torch.randint(room + 1, (len(images), 2), generator=generator)
    pairs = zip(images, corner.tolist(), strict=True)
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in pairs])


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Cut the square (..., ``size``, ``size``, 3) in the middle of images (..., S, S, 3).

    Raises:
        ValueError: the images are smaller.
    """
    first = _room(images, size) // 2
    return images[..., first : first + size, first : first + size, :]


def _room(images: Tensor, size: int) -> int:
    room = images.shape[-3] - size
    if room < 0:
        raise ValueError(f"crop is {size}, must be at most {images.shape[-3]}, the side of the images")
    return room


def pack(images: Tensor, numbers: Tensor) -> Tensor:
    """Pack images (B, To, S, S, 3) uint8 and numbers (B, To, P) float32 into conditions (B, ·) uint8."""
    return torch.cat([images.flatten(1), numbers.contiguous().view(torch.uint8).flatten(1)], dim=1)


def unpack(packed: Tensor, horizon: int, n_numbers: int) -> tuple[Tensor, Tensor]:
    """Invert ``pack``, for To = ``horizon`` and P = ``n_numbers``.

    Raises:
        ValueError: the type or the size of ``packed`` does not fit such observations.
    """
    n_bytes = 4 * horizon * n_numbers
    n_pixels = packed.shape[1] - n_bytes
    side = round(max(n_pixels / (3 * horizon), 0) ** 0.5)
    if packed.dtype != torch.uint8 or 3 * horizon * side**2 != n_pixels:
        raise ValueError(f"condition is {packed.dtype} {tuple(packed.shape)}, must be packed bytes of {horizon} images")
    images = packed[:, :n_pixels].unflatten(1, (horizon, side, side, 3))
    numbers = packed[:, n_pixels:].clone().view(torch.float32).unflatten(1, (horizon, n_numbers))
    return images, numbers


def joined(features: Tensor, numbers: Tensor) -> Tensor:
    """Join each observation's features (B, To, F) and numbers (B, To, P) to a condition (B, To · (F + P))."""
    return torch.cat([features, numbers], dim=-1).flatten(1)


class ImageConditioned(nn.Module):
    """A velocity field of packed conditions: v(t, x, c) by ``field``; every call encodes c again.

    Training by flow matching calls it once a step and so trains both parts. Solves should encode once and then call
    ``field``.

    Args:
        encoder: from images to features.
        field: v(t (B,), x (B, …), c (B, To · (F + P))).
        horizon, n_numbers: To and P.
    """

    def __init__(self, encoder: VisionEncoder, field: nn.Module, *, horizon: int, n_numbers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.field = field
        self.horizon = horizon
        self.n_numbers = n_numbers

    def encode(self, packed: Tensor) -> Tensor:
        """Encode packed conditions (B, ·) to the field's conditions (B, To · (F + P))."""
        images, numbers = unpack(packed, self.horizon, self.n_numbers)
        return joined(self.encoder(images), numbers)

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), x: (B, …), condition: packed, (B, ·) → velocity, shaped as x."""
        return self.field(t, x, self.encode(condition))
