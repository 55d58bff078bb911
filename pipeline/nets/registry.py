"""Build velocity fields and image encoders from settings."""

from torch import nn

from pipeline.nets.mlp import MLP
from pipeline.nets.transformer1d import Transformer1D
from pipeline.nets.unet1d import ConditionalUnet1D
from pipeline.nets.vision import VisionEncoder
from pipeline.settings.schema import MlpSettings, NetSettings, Transformer1dSettings, VisionSettings


def build_net(settings: NetSettings, horizon: int, action_dim: int, condition_dim: int) -> nn.Module:
    """Build the velocity field v(t (B,), x (B, horizon, action_dim), c (B, condition_dim)) of ``settings``.

    Raises:
        UserError: the horizon does not fit the net.
    """
    if isinstance(settings, MlpSettings):
        return MLP(
            horizon,
            action_dim,
            condition_dim,
            width=settings.width,
            depth=settings.depth,
            expansion=settings.expansion,
            time_features=settings.time_features,
        )
    if isinstance(settings, Transformer1dSettings):
        options = settings.model_dump(exclude={"kind"})
        return Transformer1D(horizon, action_dim, condition_dim, dropout=0.0, **options)
    return ConditionalUnet1D(
        horizon,
        action_dim,
        condition_dim,
        channels=settings.channels,
        kernel=settings.kernel,
        groups=settings.groups,
        time_features=settings.time_features,
    )


def build_encoder(settings: VisionSettings) -> VisionEncoder:
    """Build the encoder of images that ``settings`` describe, with random weights."""
    return VisionEncoder(settings.width, settings.crop)
