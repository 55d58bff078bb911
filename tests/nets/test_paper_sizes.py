"""Parameter counts of the nets of Table D.1 within 1 %, counted on the meta device."""

import pytest
import torch
from torch import nn

from pipeline.nets.registry import build_net
from pipeline.settings.blocks import Unet1dSettings

PAPER_UNET = Unet1dSettings(kind="unet1d", channels=[256, 512, 1024], kernel=5, groups=8, time_features=256)
HORIZON = 16
IMAGE_FEATURES = 512 + 2
"""Features of ResNet-18 and the agent's position."""


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
def test_parameter_counts_match_table_d1(action_dim: int, condition_dim: int, millions: float) -> None:
    assert parameters(unet(action_dim, condition_dim)) == pytest.approx(millions * 1e6, rel=0.01)


def test_each_condition_component_adds_a_film_column_per_block() -> None:
    # FiLM has two outputs per channel and two blocks per level: levels down, two in the middle, levels up
    column = 4 * (256 + 512 + 1024) + 4 * 1024 + 4 * (512 + 256)
    assert parameters(unet(2, 61)) - parameters(unet(2, 60)) == column
    assert round(column * IMAGE_FEATURES / 1e6, 1) == 7.4  # a second image raises 72.6 M to 80.0 M


@pytest.mark.parametrize("action_dim", [2, 9, 20])
def test_horizon_does_not_change_the_parameter_count(action_dim: int) -> None:
    with torch.device("meta"):
        longer = build_net(PAPER_UNET, 2 * HORIZON, action_dim, 60)
    assert parameters(longer) == parameters(unet(action_dim, 60))
