"""System (7): nonlinearities, field, Jacobian and JSON."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stability.parameterization import ACTIVATIONS
from pipeline.stability.system import NONLINEARITIES, System

SMALL = st.floats(-30, 30)


def system() -> System:
    draw = np.random.default_rng(0).standard_normal
    return System(draw((3, 3)), (draw((3, 2)), draw((3, 4))), (draw((2, 3)), draw((4, 3))), ("tanh", "softsign"))


@pytest.mark.parametrize("name", NONLINEARITIES)
@given(a=SMALL, b=SMALL, low=SMALL, high=SMALL)
@settings(deadline=None)
def test_slopes_lie_within_their_bounds(name: str, a: float, b: float, low: float, high: float) -> None:
    f = NONLINEARITIES[name]
    low, high = sorted((low, high))
    a, b = np.clip([a, b], low, high)
    assert f.function(np.zeros(1))[0] == 0
    if abs(a - b) > 1e-3:
        slope = (f.function(np.array(a)) - f.function(np.array(b))) / (a - b)
        under, over = f.slopes_on(np.array([low]), np.array([high]))
        assert f.lower - 1e-12 <= under[0] - 1e-12 <= slope <= over[0] + 1e-12 <= f.upper + 1e-11
        assert slope > 0 or not f.strictly_increasing or max(abs(a), abs(b)) > 15


@pytest.mark.parametrize("name", NONLINEARITIES)
@pytest.mark.parametrize(("low", "high"), [(3.0, -3.0), (np.nan, 1.0), (0.0, np.nan)])
def test_slopes_on_a_reversed_interval_are_refused(name: str, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low, high: given low above high"):
        NONLINEARITIES[name].slopes_on(np.array([0.0, low]), np.array([1.0, high]))


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_functions_and_derivatives_match_torch(name: str) -> None:
    f, z = NONLINEARITIES[name], np.linspace(-4, 4, 101) + 1e-3
    assert f.function(z) == pytest.approx(ACTIVATIONS[name](torch.from_numpy(z)).numpy(), abs=1e-15)
    assert f.derivative(z) == pytest.approx((f.function(z + 1e-6) - f.function(z - 1e-6)) / 2e-6, abs=1e-6)
    assert f.unbounded == (abs(f.function(np.array([-1e6, 1e6]))).min() > 100)


def test_field_jacobian_and_step_agree() -> None:
    s, x = system(), np.random.default_rng(1).standard_normal((5, 3))
    by_hand = s.A0 @ x[0] + s.A[0] @ np.tanh(s.W[0] @ x[0]) + s.A[1] @ (s.W[1] @ x[0] / (1 + abs(s.W[1] @ x[0])))
    assert s.field(x)[0] == pytest.approx(by_hand)
    assert s.euler_step(x, 2.0, 0.1) == pytest.approx(x + 0.1 * (s.field(x) + 2.0))
    for k, unit in enumerate(np.eye(3)):
        assert s.jacobian(x)[:, :, k] == pytest.approx(
            (s.field(x + 1e-6 * unit) - s.field(x - 1e-6 * unit)) / 2e-6, abs=1e-6
        )


def test_json_keeps_every_bit() -> None:
    s = system()
    again = System.from_dict(json.loads(json.dumps(s.to_dict())))
    assert (again.A0 == s.A0).all() and all((a == b).all() for a, b in zip(again.A + again.W, s.A + s.W, strict=True))
    assert again.functions == s.functions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A0": np.ones((2, 3))}, r"A0: given shape \(2, 3\)"),
        ({"A0": [[np.nan]]}, "finite"),
        ({"A0": [["1", "2"], ["3", "4"]]}, "numbers: given"),
        ({"A0": [[10**400]]}, "numbers: given"),
        ({"functions": ("tanh",)}, "as many of each"),
        ({"functions": ("tanh", "sine")}, "function: given 'sine', allowed: tanh"),
        ({"W": (np.ones((2, 3)), np.ones((5, 3)))}, r"A\[1\], W\[1\]: given"),
    ],
)
def test_invalid_systems_are_refused(change: dict, message: str) -> None:
    s = system()
    with pytest.raises(ValueError, match=message):
        System(**({"A0": s.A0, "A": s.A, "W": s.W, "functions": s.functions} | change))
