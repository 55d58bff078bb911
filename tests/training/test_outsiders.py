"""Regression and MIP are what their papers say, and fields whose Euler steps are their predictions."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.objective import reconstruct
from pipeline.ode.fixed_step import uniform_grid
from pipeline.training.outsiders import MinimalIterative, MinimalIterativeField, Regression, RegressionField
from pipeline.utils.seeding import Generators


class Affine(nn.Module):
    """f(t, x, c) = a x + b t + c, by which every argument can be told from the result."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.a * x + self.b * t[:, None, None] + condition[:, :1, None]


CONDITION = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
DATA = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 3, 2)
NOISE = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
GUESS = CONDITION[:, :, None].expand(3, 3, 2)  # f(0, 0, c) = c


def test_regression_sees_neither_noise_nor_time() -> None:
    assert Regression(Affine())(CONDITION, DATA).item() == pytest.approx((GUESS - DATA).square().mean().item())
    sample = reconstruct(RegressionField(Affine()), NOISE, CONDITION, uniform_grid(1))
    assert torch.allclose(sample, GUESS)


def test_mip_guesses_and_mends() -> None:
    mended = 0.3 * 0.9 * GUESS + 2.0 * 0.9 + GUESS
    sample = reconstruct(MinimalIterativeField(Affine()), NOISE, CONDITION, uniform_grid(2))
    assert torch.allclose(sample, mended)


def test_mip_is_trained_on_data_disturbed_by_noise() -> None:
    z = torch.randn(DATA.shape, generator=Generators(0)["noise"], dtype=torch.float64)
    mended = 0.3 * (0.9 * DATA + 0.1 * z) + 2.0 * 0.9 + GUESS
    expected = (GUESS - DATA).square().mean() + (mended - DATA).square().mean()
    assert MinimalIterative(Affine(), Generators(0))(CONDITION, DATA).item() == pytest.approx(expected.item())
