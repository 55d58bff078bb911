"""Build velocity fields of images from settings."""

import warnings
from math import prod

from torch import nn

from pipeline.nets.mlp import MLP
from pipeline.nets.unet2d import PatchedUnet2D, Unet2D
from pipeline.settings.blocks import ImageNetSettings, MlpSettings, PatchedUnet2dSettings


def build_image_net(settings: ImageNetSettings, shape: tuple[int, int, int]) -> nn.Module:
    """Build the velocity field v(t (B,), x (B, C, H, W), c (B, 0)) that ``settings`` describe.

    Args:
        shape: (C, H, W) of an image.

    Raises:
        UserError: the images do not fit the net.
    """
    options = settings.model_dump(exclude={"kind"})
    if isinstance(settings, MlpSettings):
        with warnings.catch_warnings():  # PyTorch warns that the weights of the empty condition have no elements
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            return MLP(1, prod(shape), 0, **options)
    return (PatchedUnet2D if isinstance(settings, PatchedUnet2dSettings) else Unet2D)(shape, **options)
