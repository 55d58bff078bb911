"""Losses against closed forms and finite differences."""

import pytest
import torch
from torch import Tensor

from pipeline.flow.objective import flow_matching_loss, reconstruct, reconstruction_loss
from pipeline.flow.path import i_cfm, optimal_transport
from pipeline.ode.fixed_step import uniform_grid

GENERATOR = torch.Generator().manual_seed(0)
X0, X1 = (torch.randn(5, 3, 2, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
CONDITION = torch.randn(5, 4, dtype=torch.float64, generator=GENERATOR)


def test_the_exact_field_of_a_single_datum_has_no_flow_matching_loss() -> None:
    datum = X1[:1].expand_as(X1)

    def exact(t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return (datum - x) / (1 - t)[:, None, None]

    t = 0.99 * torch.rand(5, dtype=torch.float64, generator=GENERATOR)
    assert flow_matching_loss(exact, i_cfm(0.0), X0, datum, CONDITION, t).item() < 1e-24
    # and that field's solve ends in the datum, in one step as in seven
    for nfe in (1, 7):
        assert torch.allclose(reconstruct(exact, X0, CONDITION, uniform_grid(nfe)), datum)


def test_the_flow_matching_loss_is_the_mean_squared_distance_to_the_target() -> None:
    t = torch.rand(5, dtype=torch.float64, generator=GENERATOR)
    loss = flow_matching_loss(lambda _t, x, _c: torch.zeros_like(x), optimal_transport(0.1), X0, X1, CONDITION, t)
    assert loss.item() == pytest.approx((X1 - 0.9 * X0).square().mean().item())


@pytest.mark.parametrize("nfe", [1, 4])
def test_a_constant_fields_reconstruction_loss_is_known(nfe: int) -> None:
    def constant(t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        return condition[:, :2].unsqueeze(1).expand_as(x)

    loss = reconstruction_loss(constant, X0, X1, CONDITION, uniform_grid(nfe))
    assert loss.item() == pytest.approx((X0 + CONDITION[:, None, :2] - X1).square().mean().item())


@pytest.mark.parametrize("nfe", [1, 2, 8])
def test_the_loss_is_differentiated_through_every_step(nfe: int) -> None:
    weight = 0.3 * torch.randn(2, 2, dtype=torch.float64, generator=GENERATOR)

    def loss(weight: Tensor, x0: Tensor) -> Tensor:
        def field(t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
            return torch.tanh(x @ weight + t[:, None, None] + condition[:, :1, None])

        return reconstruction_loss(field, x0, X1, CONDITION, uniform_grid(nfe))

    assert torch.autograd.gradcheck(loss, (weight.requires_grad_(), X0.clone().requires_grad_()))
