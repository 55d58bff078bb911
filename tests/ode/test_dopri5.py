"""The adaptive solve: its error, its grid and its count of evaluations."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipeline.ode import dopri5
from pipeline.ode.gradient import replay_dopri5
from pipeline.utils.errors import UserError

X0 = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_error_follows_the_tolerance_in_both_directions(tolerance: float) -> None:
    for start, end in ((0.0, 1.0), (1.0, 0.0)):
        found = dopri5.solve(lambda t, x: 2 * t * x, X0, start=start, end=end, rtol=tolerance, atol=tolerance)
        assert torch.allclose(found.end, X0 * math.exp(end**2 - start**2), rtol=10 * tolerance)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_grid_is_monotone_and_evaluations_stay_inside_it(start: float, end: float) -> None:
    times: list[float] = []

    def field(t: float, x: Tensor) -> Tensor:
        times.append(t)
        return torch.sin(20 * x) + t

    found = dopri5.solve(field, X0, start=start, end=end)
    assert (found.grid[0], found.grid[-1]) == (start, end)
    assert all((later - earlier) * (end - start) > 0 for earlier, later in pairwise(found.grid))
    assert found.nfe == len(times) > dopri5.EVALUATIONS * (len(found.grid) - 1)
    assert min(times) >= 0 and max(times) <= 1


def test_no_gradient_is_recorded() -> None:
    assert not dopri5.solve(lambda _t, x: -x, X0.clone().requires_grad_()).end.requires_grad


FAILING: dict[str, tuple[Callable[[float, Tensor], Tensor], str]] = {
    "NaN": (lambda _t, x: x * math.nan, r"dopri5: the field returned NaN or infinity at t = 0"),
    "infinity": (lambda _t, x: x / 0.0, r"dopri5: the field returned NaN or infinity at t = 0"),
    "NaN later": (
        lambda t, x: x if t < 0.3 else x * math.nan,
        r"the field returned NaN or infinity at t = (0\.[3-9]|1$)",
    ),
    "NaN in a row": (lambda _t, x: torch.where(x > 1.9, math.nan, x), "the field returned NaN or infinity at t = 0"),
    "blow-up": (lambda _t, x: x.square(), r"the solution blows up or jumps|NaN or infinity at t = 0\.[45]"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("failing", FAILING)
def test_failing_field_raises_a_one_line_error(failing: str, dtype: torch.dtype) -> None:
    field, message = FAILING[failing]
    for solve in (dopri5.solve, replay_dopri5):
        with pytest.raises(FloatingPointError, match=message) as failure:
            solve(field, X0.to(dtype))
        assert "\n" not in str(failure.value)


def test_failures_backwards_and_of_the_initial_state_raise() -> None:
    with pytest.raises(FloatingPointError, match=r"^dopri5: the field returned NaN or infinity at t = (0$|0\.[0-5])"):
        dopri5.solve(lambda t, x: x if t > 0.6 else x * math.nan, X0, start=1.0, end=0.0)
    with pytest.raises(FloatingPointError, match=r"^dopri5: the state is not finite at t = 0$"):
        dopri5.solve(lambda _t, x: torch.zeros_like(x), X0 / 0.0)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_max_steps_is_enforced(start: float, end: float) -> None:
    found = dopri5.solve(lambda _t, x: torch.sin(50 * x), X0, start=start, end=end)
    steps = len(found.grid) - 1
    with pytest.raises(UserError, match=rf"^dopri5: 5 steps led to t = 0\.\d+ of {end:g} only; a larger tolerance"):
        dopri5.solve(lambda _t, x: torch.sin(50 * x), X0, start=start, end=end, max_steps=5)
    assert steps > 5
    with pytest.raises(UserError, match=r"^dopri5: 5 steps led to"):
        replay_dopri5(lambda _t, x: torch.sin(50 * x), X0, start=start, end=end, max_steps=5)
    smooth = dopri5.solve(lambda _t, x: -x, X0)
    exactly = len(smooth.grid) - 1
    assert torch.equal(dopri5.solve(lambda _t, x: -x, X0, max_steps=exactly).end, smooth.end)
