"""From settings to velocity field."""

from torch import nn

from pipeline.config import MlpSettings, NetSettings
from pipeline.nets.mlp import MLP
from pipeline.nets.unet1d import ConditionalUnet1D


def build_net(settings: NetSettings, horizon: int, action_dim: int, condition_dim: int) -> nn.Module:
    """The velocity field v(t (B,), x (B, horizon, action_dim), c (B, condition_dim)) that ``settings`` describe.

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
    return ConditionalUnet1D(
        horizon,
        action_dim,
        condition_dim,
        channels=settings.channels,
        kernel=settings.kernel,
        groups=settings.groups,
        time_features=settings.time_features,
    )
