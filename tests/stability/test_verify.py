"""Proofs of definiteness are sound and nearly tight."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stability.verify import Enclosure, bounds_of_norm, is_positive_definite, least_eigenvalue


def exact_product(a: np.ndarray, b: np.ndarray) -> list[list[Fraction]]:
    return [
        [sum((Fraction(x) * Fraction(y) for x, y in zip(row, column, strict=True)), Fraction(0)) for column in b.T]
        for row in a
    ]


def exactly_positive_definite(matrix: list[list[Fraction]]) -> bool:
    """Decide by elimination in rational arithmetic."""
    rows = [row[:] for row in matrix]
    for k in range(len(rows)):
        if rows[k][k] <= 0:
            return False
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return True


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(-8, 8))
@settings(max_examples=60, deadline=None)
def test_products_and_sums_are_enclosed(seed: int, size: int, spread: float) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, size, size)) * 10.0 ** draw.uniform(-abs(spread), abs(spread), (2, size, size))
    enclosed = Enclosure.exact(a) @ b * 0.1 - a
    for i, row in enumerate(exact_product(a, b)):
        for j, value in enumerate(row):
            exact = value * Fraction(0.1) - Fraction(a[i, j])
            assert abs(exact - Fraction(enclosed.mid[i, j])) <= Fraction(enclosed.rad[i, j])
            assert enclosed.rad[i, j] <= 1e-14 * (np.abs(a) @ np.abs(b) + np.abs(a))[i, j] + 1e-280


@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(-17, -10))
@settings(max_examples=80, deadline=None)
def test_nearly_singular_matrices_are_never_wrongly_proved(seed: int, size: int, exponent: float) -> None:
    draw = np.random.default_rng(seed)
    root = draw.standard_normal((size, max(size - 1, 1)))
    matrix = np.tril(root @ root.T) + draw.choice([-1, 1]) * 10**exponent * np.eye(size)
    matrix = np.tril(matrix) + np.tril(matrix, -1).T
    if is_positive_definite(matrix):
        assert exactly_positive_definite([[Fraction(value) for value in row] for row in matrix])


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_definite_matrices_are_proved_at_any_scale(scale: float) -> None:
    root = np.random.default_rng(0).standard_normal((50, 80))
    matrix = scale * (root @ root.T)
    matrix = (matrix + matrix.T) / 2
    assert is_positive_definite(matrix) and not is_positive_definite(-matrix)
    if scale == 1:
        true = np.linalg.eigvalsh(matrix)[0]
        assert 0.89 * true < least_eigenvalue(matrix) <= true


def test_an_indefinite_or_singular_matrix_is_not_proved() -> None:
    for matrix in (
        np.ones((2, 2)),
        np.diag([1.0, 0.0]),
        np.diag([1.0, -1e-300]),
        np.array([[1.0, np.nan], [np.nan, 1.0]]),
        np.array([[1e-200, 1e300], [1e300, 1e-200]]),
        np.array([[1.7e308, 1.7e308], [1.7e308, 1.7e308]]),
    ):
        assert not is_positive_definite(matrix)
    assert not is_positive_definite(Enclosure(np.eye(2), np.full((2, 2), 0.6)))
    assert is_positive_definite(Enclosure(np.eye(2), np.full((2, 2), 0.4)))


def test_badly_scaled_matrices_are_judged_correctly() -> None:
    assert is_positive_definite(np.array([[1e12, 1.0], [1.0, 1e-10]]))
    assert not is_positive_definite(np.array([[1e12, 1.0], [1.0, 0.9e-12]]))


def test_bounds_of_a_norm_hold() -> None:
    root = np.random.default_rng(0).standard_normal((6, 6))
    P = root @ root.T + np.eye(6)
    P = (P + P.T) / 2
    eigenvalues = np.linalg.eigvalsh(P)
    least, largest = bounds_of_norm(P)
    assert 0.89 * eigenvalues[0] < least <= eigenvalues[0] and eigenvalues[-1] <= largest < 1.001 * eigenvalues[-1]
