"""Search by gradient ascent for the states of a system from which neighbours separate fastest.

The growth at x, in one norm or in all, depends on x only through J = ∂x'/∂x. As J = A0 + A diag(f'(Wx)) W, any
d growth ∝ Re pᵀ dJ v has the gradient Wᵀ Re[(Aᵀp) ∘ (Wv) ∘ f''(Wx)], for any measure of growth.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.stability.system import Array, System, nonlinearity

Complex = NDArray[np.complex128]

Growth = Callable[[Array], tuple[Array, Complex, Complex]]
"""Jacobians (B, n, n) → growth (B,), and p, v (B, n) with d growth ∝ Re pᵀ dJ v."""


def jacobians(system: System, x: Array, step: float | None) -> Array:
    """Compute the Jacobians of the flow's field or, given ``step``, of the Euler map, (…, n, n)."""
    jacobian = system.jacobian(x)
    return jacobian if step is None else np.eye(system.n) + step * jacobian


def growth_in_norm(P: Array, step: float | None) -> Growth:
    """Make the growth of |·|_P: the rate of a flow, the factor of an Euler map."""
    factor = np.linalg.cholesky(P).T
    inverse = np.linalg.inv(factor)

    def growth(matrices: Array) -> tuple[Array, Complex, Complex]:
        seen = factor @ matrices @ inverse
        if step is None:
            values, vectors = np.linalg.eigh((seen + np.swapaxes(seen, -1, -2)) / 2)
            value, left, right = values[:, -1], vectors[:, :, -1], vectors[:, :, -1]
        else:
            u, s, vh = np.linalg.svd(seen)
            value, left, right = s[:, 0], u[:, :, 0], vh[:, 0]
        return value, (left @ factor).astype(complex), (right @ inverse.T).astype(complex)

    return growth


def growth_in_every_norm(step: float | None) -> Growth:
    """Make the growth near an equilibrium: the spectral abscissa of a flow, the spectral radius of an Euler map."""

    def growth(matrices: Array) -> tuple[Array, Complex, Complex]:
        pick: list[tuple[float, Complex, Complex]] = []
        for matrix in matrices:
            values, left, right = eigenpairs(matrix)
            size = values.real if step is None else np.abs(values)
            k = int(np.argmax(size))
            product = complex(left[k] @ right[:, k]) or 1e-300
            turn = 1.0 if step is None else np.conj(values[k]) / max(abs(values[k]), 1e-300)
            pick.append((float(size[k]), left[k] * turn / product, right[:, k]))
        value, p, v = (np.array(column) for column in zip(*pick, strict=True))
        return value, p, v

    return growth


def eigenpairs(matrix: Array) -> tuple[Complex, Complex, Complex]:
    """Compute eigenvalues, left eigenvectors as rows and right ones as columns, of length 1.

    The left ones are zero if the eigenvectors are no basis.
    """
    values, right = np.linalg.eig(matrix)
    try:
        left = np.linalg.inv(right)
        left = left / np.linalg.norm(left, axis=1, keepdims=True)
    except np.linalg.LinAlgError:
        left = np.zeros_like(right)
    return values.astype(complex), left.astype(complex), right.astype(complex)


def starting_states(system: System, count: int, seed: int) -> Array:
    """Draw states from small to large, (count, n); random inputs have moved every second one."""
    generator = np.random.default_rng(seed)
    unit = 1 / max(float(np.linalg.norm(system.stacked[1], 2)), 1e-3)
    scales = unit * np.exp(generator.uniform(np.log(1e-2), np.log(30), (count, 1)))
    states = scales * generator.standard_normal((count, system.n))
    inputs = generator.standard_normal(states.shape) * scales * np.linalg.norm(system.A0, 2)
    led = states[::2]
    for _ in range(20):
        led = system.euler_step(led, inputs[::2], 0.1 / (float(np.linalg.norm(system.A0, 2)) + 1e-12))
    states[::2] = np.where(np.isfinite(led) & (np.abs(led) < 1e6), led, states[::2])
    return states


def climbed(system: System, states: Array, growth: Growth, step: float | None, climbs: int) -> Array:
    """Move ``states`` (B, n) uphill by ``climbs`` steps; a step is kept only if the growth rises."""
    A, W = system.stacked
    sizes = np.full((len(states), 1), 0.3 / max(float(np.linalg.norm(W, 2)), 1e-3)) * np.sqrt(system.n)
    generator = np.random.default_rng(0)
    values, p, v = growth(jacobians(system, states, step))
    for _ in range(climbs):
        bend = _curvatures(system, states)
        slope = np.real((p @ A) * (v @ W.T) * bend) @ W
        slope = slope + 1e-12 * generator.standard_normal(slope.shape)  # a random direction if the slope is zero
        tried = states + sizes * slope / np.linalg.norm(slope, axis=1, keepdims=True)
        new, new_p, new_v = growth(jacobians(system, tried, step))
        better = new > values
        states, values = np.where(better[:, None], tried, states), np.where(better, new, values)
        p, v = np.where(better[:, None], new_p, p), np.where(better[:, None], new_v, v)
        sizes = np.where(better[:, None], 1.5 * sizes, 0.5 * sizes)
    return states


def _curvatures(system: System, x: Array) -> Array:
    """Compute all f_j''(W_j x), (B, K), by finite differences."""
    width = 1e-4
    parts = []
    for name, w in zip(system.functions, system.W, strict=True):
        derivative, z = nonlinearity(name).derivative, x @ w.T
        parts.append((derivative(z + width) - derivative(z - width)) / (2 * width))
    return np.concatenate(parts, axis=1)
