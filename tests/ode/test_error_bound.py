"""The four bounds of Theorem 1: their order and closed-form cases."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.ode.error_bound import (
    StepErrors,
    euler_truncation,
    max_step_bound,
    product_bound,
    uniform_bound,
    variable_bound,
)

CONSTANTS = st.floats(0, 20)


@st.composite
def step_errors(draw: st.DrawFn, *, equal: bool = False) -> StepErrors:
    count = draw(st.integers(1, 8))
    steps = (
        np.full(count, 1.0) if equal else np.array(draw(st.lists(st.floats(0.02, 1), min_size=count, max_size=count)))
    )
    times = np.concatenate([[0.0], np.cumsum(steps / steps.sum())])
    values = [np.array(draw(st.lists(CONSTANTS, min_size=count, max_size=count))) for _ in range(3)]
    order = draw(st.sampled_from([1, 2, 4, 5]))
    return StepErrors(times, values[0], values[1], values[2] * np.diff(times) ** (order + 1), order)


@given(step_errors(), st.floats(0, 3))
def test_product_bound_equals_its_recursion_and_is_below_the_variable_bound(errors: StepErrors, start: float) -> None:
    worst = start
    for j, step in enumerate(errors.steps):
        worst = (1 + errors.lipschitz[j] * step) * worst + errors.field_error[j] * step + errors.truncation[j]
    assert product_bound(errors, start) == pytest.approx(worst)
    assert product_bound(errors, start) <= variable_bound(errors, start) * (1 + 1e-9)
    assert product_bound(errors) <= max_step_bound(errors) * (1 + 1e-9)


@given(step_errors(equal=True), st.floats(0, 3))
@example(StepErrors(np.array([0.0, 0.5, 1.0]), np.zeros(2), np.array([0.0, 5e-324]), np.array([0.0, 0.25]), 1), 0.0)
def test_uniform_bound_lies_between_product_and_max_step_bound(errors: StepErrors, start: float) -> None:
    between = uniform_bound(errors, start)
    assert product_bound(errors, start) <= between * (1 + 1e-9)
    if start == 0:
        assert between <= max_step_bound(errors) * (1 + 1e-9)


def test_linear_growth_attains_the_product_bound() -> None:
    # x' = 2x + 1/2 learned for x' = 2x, from x(0) = 1: |x''| = 4 e^{2t}, and the errors of both kinds have one sign
    steps, rate, off = 16, 2.0, 0.5
    times = np.linspace(0, 1, steps + 1)
    learned = true = 1.0
    for _ in range(steps):
        learned += (rate * learned - off) / steps
        true *= np.exp(rate / steps)
    truncation = np.exp(rate * times[:-1]) * (np.exp(rate / steps) - 1 - rate / steps)
    exact = StepErrors(times, np.full(steps, off), np.full(steps, rate), truncation, 1)
    assert product_bound(exact) == pytest.approx(true - learned, rel=1e-12)
    accelerated = StepErrors(
        times, exact.field_error, exact.lipschitz, euler_truncation(times, 4 * np.exp(2 * times[1:])), 1
    )
    assert true - learned < product_bound(accelerated) < uniform_bound(accelerated) < max_step_bound(accelerated)
    h, bound = 1 / steps, ((1 + rate / steps) ** steps - 1) / rate * (off + 0.5 * 4 * np.exp(2) / steps)
    assert uniform_bound(accelerated) == pytest.approx(bound, rel=1e-12)
    summed = np.exp(rate * (1 - h)) * (off + 0.5 * 4 * np.exp(2) * h)
    assert variable_bound(accelerated) == pytest.approx(summed, rel=1e-12)


def test_bounds_of_a_constant_field_sum_its_errors() -> None:
    errors = StepErrors(np.array([0, 0.25, 1]), np.array([0.1, 0.2]), np.zeros(2), np.zeros(2), 1)
    assert product_bound(errors) == pytest.approx(0.175)
    assert max_step_bound(errors) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="not equal"):
        uniform_bound(errors)


def test_overflowing_bounds_are_infinite() -> None:
    steep = StepErrors(np.linspace(0, 1, 101), np.ones(100), np.full(100, 1e4), np.ones(100), 1)
    assert variable_bound(steep) == max_step_bound(steep) == np.inf and np.isfinite(product_bound(steep))
