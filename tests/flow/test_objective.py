"""Losses against closed forms and finite differences."""

import pytest
import torch
from torch import Tensor

from pipeline.flow.objective import flow_matching_loss, reconstruct, reconstruction_loss
from pipeline.flow.path import i_cfm, optimal_transport
from pipeline.nets.mlp import MLP
from pipeline.ode.fixed_step import uniform_grid
from pipeline.ode.gradient import GRADIENTS, Gradient

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


def net_gradients(bf16: bool, nfe: int = 4, **how: object) -> list[Tensor]:
    """Of the reconstruction loss in the weights of a small net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(3, 2, 4, width=8, depth=1, expansion=2, time_features=4)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = reconstruction_loss(net, X0.float(), X1.float(), CONDITION.float(), uniform_grid(nfe), **how)
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("last_steps", [None, 2])
def test_checkpointing_changes_no_bit_of_a_nets_gradient(bf16: bool, last_steps: int | None) -> None:
    direct = net_gradients(bf16, last_steps=last_steps)
    checkpointed = net_gradients(bf16, last_steps=last_steps, gradient="checkpointed")
    assert all(torch.equal(a, b) for a, b in zip(direct, checkpointed, strict=True))
    assert all(a.count_nonzero() > 0 for a in direct)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_gradient_reaches_all_weights_of_a_net(gradient: Gradient) -> None:
    exact, found = net_gradients(False, nfe=32), net_gradients(False, nfe=32, gradient=gradient)
    for wanted, given in zip(exact, found, strict=True):
        assert torch.cosine_similarity(wanted.flatten(), given.flatten(), dim=0) > 0.95
