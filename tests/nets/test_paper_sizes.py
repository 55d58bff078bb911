"""Numbers of parameters of the nets of Table D.1, within 1 %; counted on the meta device, where nothing is held."""

import pytest
import torch
from torch import nn

from pipeline.nets.registry import build_net
from pipeline.settings.blocks import Unet1dSettings

PAPER_UNET = Unet1dSettings(kind="unet1d", channels=[256, 512, 1024], kernel=5, groups=8, time_features=256)
HORIZON = 16
IMAGE_FEATURES = 512 + 2
"""What ResNet-18 makes of an image, and the agent's position."""


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def unet(action_dim: int, condition_dim: int) -> nn.Module:
    with torch.device("meta"):
        return build_net(PAPER_UNET, HORIZON, action_dim, condition_dim)


@pytest.mark.parametrize(
    ("action_dim", "condition_dim", "millions"),
    [(2, IMAGE_FEATURES, 72.6), (2, 2 * IMAGE_FEATURES, 80), (9, 60, 66), (20, 50, 66), (20, 59, 66)],
    ids=["pusht_image", "pusht_image_2_observations", "kitchen", "transport", "transport_both_arms"],
)
def test_f_par_of_table_d1(action_dim: int, condition_dim: int, millions: float) -> None:
    assert parameters(unet(action_dim, condition_dim)) == pytest.approx(millions * 1e6, rel=0.01)


def test_a_number_of_the_condition_enters_every_residual_block() -> None:
    # as a column of each block's FiLM layer, of two outputs a channel: 4 · (256 + 512 + 1024) on the way down, as many
    # in the middle's 4 · 1024, and 4 · (512 + 256) on the way up
    column = 4 * (256 + 512 + 1024) + 4 * 1024 + 4 * (512 + 256)
    assert parameters(unet(2, 61)) - parameters(unet(2, 60)) == column
    assert round(column * IMAGE_FEATURES / 1e6, 1) == 7.4  # by which a second image makes 72.6 M to 80.0 M


@pytest.mark.parametrize("action_dim", [2, 9, 20])
def test_the_horizon_costs_nothing(action_dim: int) -> None:
    with torch.device("meta"):
        longer = build_net(PAPER_UNET, 2 * HORIZON, action_dim, 60)
    assert parameters(longer) == parameters(unet(action_dim, 60))
