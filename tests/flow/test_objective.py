"""Losses against closed forms and finite differences."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipeline.flow.objective import flow_matching_loss, reconstruct, reconstruct_with_energy
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
    for nfe in (1, 7):
        assert torch.allclose(reconstruct(exact, X0, CONDITION, uniform_grid(nfe)), datum)


def test_the_flow_matching_loss_is_the_mean_squared_distance_to_the_target() -> None:
    t = torch.rand(5, dtype=torch.float64, generator=GENERATOR)
    loss = flow_matching_loss(lambda _t, x, _c: torch.zeros_like(x), optimal_transport(0.1), X0, X1, CONDITION, t)
    assert loss.item() == pytest.approx((X1 - 0.9 * X0).square().mean().item())


@pytest.mark.parametrize("nfe", [1, 4])
def test_reconstruction_of_a_constant_field_is_exact(nfe: int) -> None:
    def constant(t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        return condition[:, :2].unsqueeze(1).expand_as(x)

    made = reconstruct(constant, X0, CONDITION, uniform_grid(nfe))
    assert torch.allclose(made, X0 + CONDITION[:, None, :2])


@pytest.mark.parametrize("nfe", [1, 2, 8])
def test_the_loss_is_differentiated_through_every_step(nfe: int) -> None:
    weight = 0.3 * torch.randn(2, 2, dtype=torch.float64, generator=GENERATOR)

    def loss(weight: Tensor, x0: Tensor) -> Tensor:
        def field(t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
            return torch.tanh(x @ weight + t[:, None, None] + condition[:, :1, None])

        return (reconstruct(field, x0, CONDITION, uniform_grid(nfe)) - X1).square().mean()

    assert torch.autograd.gradcheck(loss, (weight.requires_grad_(), X0.clone().requires_grad_()))


def net_gradients(bf16: bool, nfe: int = 4, **how: object) -> list[Tensor]:
    """Return the gradients of reconstruction loss and path energy in the weights of a small net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(3, 2, 4, width=8, depth=1, expansion=2, time_features=4)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made, energy = reconstruct_with_energy(net, X0.float(), CONDITION.float(), uniform_grid(nfe), **how)
        loss = (made - X1.float()).square().mean() + 0.1 * energy.mean()
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("last_steps", [None, 2])
def test_checkpointing_changes_no_bit_of_a_nets_gradient(bf16: bool, last_steps: int | None) -> None:
    direct = net_gradients(bf16, last_steps=last_steps)
    checkpointed = net_gradients(bf16, last_steps=last_steps, gradient="checkpointed")
    assert all(torch.equal(a, b) for a, b in zip(direct, checkpointed, strict=True))
    assert all(a.count_nonzero() > 0 for a in direct)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient_methods_agree_in_direction_for_every_weight(gradient: Gradient) -> None:
    exact, found = net_gradients(False, nfe=32), net_gradients(False, nfe=32, gradient=gradient)
    for wanted, given in zip(exact, found, strict=True):
        assert torch.cosine_similarity(wanted.flatten(), given.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("last_steps", [None, 1])
def test_the_energy_of_a_constant_field_is_its_mean_square(
    solver: str, gradient: Gradient, last_steps: int | None
) -> None:
    velocity = torch.randn(3, 2, dtype=torch.float64, generator=GENERATOR).requires_grad_()

    def constant(_t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return condition.expand_as(x)

    grid = uniform_grid(8, solver)
    made, energy = reconstruct_with_energy(
        constant, X0, velocity, grid, solver, gradient=gradient, last_steps=last_steps
    )
    assert torch.allclose(made, X0 + velocity)
    assert torch.allclose(energy, velocity.square().mean().expand(5))
    (found,) = torch.autograd.grad(energy.mean(), velocity)
    share = 1.0 if last_steps is None else last_steps / (len(grid) - 1)  # of the path that the gradient goes through
    assert torch.allclose(found, share * 2 * velocity / velocity.numel())


def test_energy_of_an_euler_path_and_its_gradient_equal_a_plain_loop() -> None:
    grid = [0.0, 0.1, 0.4, 1.0]

    def by_hand(weight: Tensor) -> tuple[Tensor, Tensor]:
        x, energy = X0, torch.zeros(5, dtype=torch.float64)
        for t, t_next in pairwise(grid):
            velocity = torch.tanh(x @ weight + t)
            energy = energy + (t_next - t) * velocity.square().flatten(1).mean(1)
            x = x + (t_next - t) * velocity
        return x, energy

    def solved(weight: Tensor) -> tuple[Tensor, Tensor]:
        return reconstruct_with_energy(
            lambda t, x, _condition: torch.tanh(x @ weight + t[:, None, None]), X0, CONDITION, grid
        )

    weight = torch.randn(2, 2, dtype=torch.float64, generator=GENERATOR).requires_grad_()
    gradients = []
    for made, energy in (by_hand(weight), solved(weight)):
        gradients.append((made, energy, *torch.autograd.grad(energy.sum(), weight)))
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(expected, found, rtol=1e-12, atol=1e-14)
