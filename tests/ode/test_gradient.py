"""Gradients through a solve against finite differences and torchdiffeq; their cost in calls and bytes."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from pipeline.ode.fixed_step import SOLVERS, STEPS, Field, solve, uniform_grid
from pipeline.ode.gradient import GRADIENTS, Gradient, replay_dopri5, solve_for_training, update_passes
from pipeline.perf.gradients import saved_bytes

UNEVEN = [0.0, 0.1, 0.35, 0.6, 1.0]
BATCH, DIM, HIDDEN = 5, 3, 7


class Problem:
    """A small nonlinear field that depends on time, its parameters, a start and a target; all float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.w1, self.b, self.w2 = draw(DIM, HIDDEN) / 2, draw(HIDDEN), draw(HIDDEN, DIM) / 2
        self.x0, self.target = draw(BATCH, DIM), draw(BATCH, DIM)
        self.calls = 0

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors in which gradients are taken."""
        return self.w1, self.b, self.w2, self.x0

    def field(self, t: float | Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x @ self.w1 + self.b * (1 + t)) @ self.w2

    def gradients(self, end: Callable[[Field, Tensor], Tensor]) -> list[Tensor]:
        """Return the gradients of ½‖end − target‖² in all ``inputs``, zero where it does not depend on one."""
        for tensor in self.inputs:
            tensor.requires_grad_()
        loss = (end(self.field, self.x0) - self.target).square().sum() / 2
        found = torch.autograd.grad(loss, self.inputs, allow_unused=True, materialize_grads=True)
        for tensor in self.inputs:
            tensor.requires_grad_(False)
        return list(found)

    def parameters(self) -> tuple[Tensor, ...]:
        return self.w1, self.b, self.w2

    def slope(self, end: Callable[[Field, Tensor], Tensor], direction: list[Tensor], width: float = 1e-5) -> float:
        """Return the loss's derivative along ``direction`` by a central difference."""
        sides = []
        for sign in (1, -1):
            for tensor, change in zip(self.inputs, direction, strict=True):
                tensor += sign * width * change
            sides.append((end(self.field, self.x0) - self.target).square().sum().item() / 2)
            for tensor, change in zip(self.inputs, direction, strict=True):
                tensor -= sign * width * change
        return (sides[0] - sides[1]) / (2 * width)


def solving(grid: list[float], method: str, gradient: Gradient, last_steps: int | None = None) -> Callable[..., Tensor]:
    return lambda field, x: solve_for_training(field, x, grid, method, gradient=gradient, last_steps=last_steps)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_exact_gradients_equal_finite_differences(method: str, gradient: Gradient) -> None:
    problem, end = Problem(), solving(UNEVEN, method, gradient)
    found = problem.gradients(end)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in found]
        along = sum((a * b).sum().item() for a, b in zip(found, direction, strict=True))
        assert along == pytest.approx(problem.slope(end, direction), rel=1e-7)


# torchdiffeq's "rk4" is the 3/8 rule, which agrees with the classical one only to their order
@pytest.mark.parametrize(("method", "name"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_direct_equals_torchdiffeqs_gradient(method: str, name: str) -> None:
    problem, times = Problem(), torch.tensor(UNEVEN, dtype=torch.float64)
    theirs = problem.gradients(lambda field, x: odeint(lambda t, y: field(t.item(), y), x, times, method=name)[-1])
    for ours, other in zip(problem.gradients(solving(UNEVEN, method, "direct")), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)


def test_rk4_converges_to_torchdiffeqs_three_eighths_rule_at_fourth_order() -> None:
    problem, gaps = Problem(), []
    for steps in (4, 8, 16):
        grid = uniform_grid(4 * steps, "rk4")
        times = torch.tensor(grid, dtype=torch.float64)
        ours = problem.gradients(solving(grid, "rk4", "direct"))
        theirs = problem.gradients(
            lambda field, x, times=times: odeint(lambda t, y: field(t.item(), y), x, times, method="rk4")[-1]
        )
        gaps.append(distance(ours, theirs))
    assert all(math.log2(coarse / fine) > 3.5 for coarse, fine in pairwise(gaps))


def test_dopri5_on_given_steps_equals_torchdiffeqs_gradient() -> None:
    problem, times = Problem(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    held = {"first_step": 0.25, "min_step": 0.25, "max_step": 0.25}
    theirs = problem.gradients(lambda field, x: odeint(field, x, times, method="dopri5", options=held)[-1])
    ours = problem.gradients(solving([0.0, 0.25, 0.5, 0.75, 1.0], "dopri5", "direct"))
    assert distance(ours, theirs) < 1e-12


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_replay_gradient_agrees_with_torchdiffeqs_adaptive_solve(gradient: Gradient) -> None:
    # torchdiffeq differentiates through the choice of step sizes, too: the two agree within the tolerance
    problem, times, tolerances = Problem(), torch.tensor([0.0, 1.0], dtype=torch.float64), {"rtol": 1e-9, "atol": 1e-9}
    theirs = problem.gradients(lambda field, x: odeint(field, x, times, method="dopri5", **tolerances)[-1])
    ours = problem.gradients(lambda field, x: replay_dopri5(field, x, gradient=gradient, **tolerances).end)
    assert distance(ours, theirs) < 1e-8


def test_replay_counts_its_evaluations_apart_from_the_solve() -> None:
    problem = Problem()
    replay = replay_dopri5(problem.field, problem.x0, rtol=1e-6, atol=1e-6)
    assert problem.calls == replay.solved.nfe + replay.nfe
    assert replay.nfe == 6 * (len(replay.solved.grid) - 1)
    torch.testing.assert_close(replay.end, replay.solved.end, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("last_steps", [None, 2])
def test_checkpointed_equals_direct_to_the_bit(method: str, last_steps: int | None) -> None:
    problem = Problem()
    direct = problem.gradients(solving(UNEVEN, method, "direct", last_steps))
    checkpointed = problem.gradients(solving(UNEVEN, method, "checkpointed", last_steps))
    assert all(torch.equal(a, b) for a, b in zip(direct, checkpointed, strict=True))


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("last_steps", [1, 3])
def test_truncated_is_the_gradient_of_the_last_steps_from_a_constant_state(
    method: str, gradient: Gradient, last_steps: int
) -> None:
    problem, first = Problem(), len(UNEVEN) - 1 - last_steps
    start = solve(problem.field, problem.x0, UNEVEN[: first + 1], method)
    wanted = problem.gradients(lambda field, _x: solve(field, start, UNEVEN[first:], method))
    found = problem.gradients(solving(UNEVEN, method, gradient, last_steps))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[-1].count_nonzero() == 0


def test_truncating_to_all_steps_changes_nothing() -> None:
    problem = Problem()
    full = problem.gradients(solving(UNEVEN, "euler", "direct"))
    truncated = problem.gradients(solving(UNEVEN, "euler", "direct", len(UNEVEN) - 1))
    assert all(torch.equal(a, b) for a, b in zip(full, truncated, strict=True))


def distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Return the relative distance of two gradients."""
    gap = sum((a - b).square().sum().item() for a, b in zip(first, second, strict=True))
    return math.sqrt(gap / sum(a.square().sum().item() for a in second))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_adjoint_is_wrong_on_coarse_grids_and_converges_at_the_solvers_order_or_better(
    method: str, order: int
) -> None:
    problem, errors = Problem(), []
    for steps in (2, 16, 32, 64):
        grid = uniform_grid(steps * STEPS[method][1], method)
        adjoint = problem.gradients(
            lambda field, x, grid=grid: solve_for_training(
                field, x, grid, method, gradient="adjoint", parameters=problem.parameters()
            )
        )
        errors.append(distance(adjoint, problem.gradients(solving(grid, method, "direct"))))
    assert errors[0] > 5e-3
    # heun's are one order better where the states are those of the forward solve
    assert all(math.log2(coarse / fine) > order - 0.3 for coarse, fine in pairwise(errors[1:]))


def test_adjoint_refuses_dopri5() -> None:
    with pytest.raises(ValueError, match=r"^adjoint: given method 'dopri5', allowed: euler, midpoint, heun, rk4$"):
        solve_for_training(lambda _t, x: x, torch.ones(1), UNEVEN, "dopri5", gradient="adjoint")


@pytest.mark.parametrize("last_steps", [-1, 0, 5])
def test_last_steps_outside_the_grid_are_refused(last_steps: int) -> None:
    with pytest.raises(ValueError, match=f"^last_steps: given {last_steps}, allowed: 1 to 4, the number of steps$"):
        solve_for_training(lambda _t, x: x, torch.ones(1), UNEVEN, last_steps=last_steps)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("last_steps", [None, 2])
def test_nfe_is_spent_exactly_forward_and_backward(method: str, gradient: Gradient, last_steps: int | None) -> None:
    problem = Problem()
    nfe = 4 * STEPS[method][1]
    calls_forward = 0

    def end(field: Field, x: Tensor) -> Tensor:
        nonlocal calls_forward
        grid = uniform_grid(nfe, method)
        made = solve_for_training(
            field, x, grid, method, gradient=gradient, last_steps=last_steps, parameters=problem.parameters()
        )
        calls_forward = problem.calls
        return made

    problem.gradients(end)
    assert calls_forward == nfe
    tracked = nfe if last_steps is None else last_steps * STEPS[method][1]
    assert problem.calls == update_passes(nfe, method, gradient, last_steps) - 2 * tracked


@pytest.mark.parametrize("method", SOLVERS)
def test_memory_per_step_is_activations_if_direct_and_one_state_if_checkpointed(method: str) -> None:
    problem, evaluations = Problem(), STEPS[method][1]

    def held(gradient: Gradient, steps: int) -> int:
        with saved_bytes(problem.inputs) as saved:
            grid = uniform_grid(steps * evaluations, method)
            problem.gradients(solving(grid, method, gradient))
        return saved.total

    state = problem.x0.nbytes
    activations = held("direct", 3) - held("direct", 2)
    assert activations >= evaluations * (BATCH * HIDDEN * 8 + state)  # tanh's output and its input's input, at least
    assert [held("direct", n + 1) - held("direct", n) for n in (4, 8)] == [activations] * 2
    assert [held("checkpointed", n + 1) - held("checkpointed", n) for n in (2, 4, 8)] == [state] * 3
    assert held("checkpointed", 1) == held("direct", 1)
