"""The matrix inequalities, each written once. README.md derives them.

They use only + − @ .T and multiplication by numbers, so the same lines work for numpy arrays, torch tensors
(penalties), cvxpy expressions (search) and enclosures (proof). All nonlinearities are stacked into one: A (n, K),
W (K, n), and diagonal matrices (K, K) for slopes and multipliers.
"""

from typing import Any

Matrix = Any
"""A matrix of any of the four types."""

Blocks = list[list[Any]]
"""A symmetric matrix in blocks."""


def flow_blocks(
    A0: Matrix, A: Matrix, W: Matrix, lower: Matrix, upper: Matrix, P: Matrix, gamma: Matrix, rate: Any
) -> Blocks:
    """Build the inequality of the flow's contraction: negative definite means |δ(t)|_P ≤ e^{−rate·t} |δ(0)|_P."""
    growth, coupling = A0.T @ P, P @ A + W.T @ ((lower + upper) @ gamma)
    quadratic = growth + growth.T + (2 * rate) * P - 2 * (W.T @ (lower @ upper @ gamma) @ W)
    return [[quadratic, coupling], [coupling.T, -2 * gamma]]


def step_blocks(
    M0: Matrix, M: Matrix, W: Matrix, lower: Matrix, upper: Matrix, P: Matrix, gamma: Matrix, ratio_squared: Any
) -> Blocks:
    """Build the inequality of contraction of x → M0 x + M f(W x) + h g: negative definite means |δ⁺|_P ≤ ratio · |δ|_P.

    Args:
        M0, M: I + hA0, (n, n), and hA, (n, K).
    """
    coupling = M0.T @ P @ M + W.T @ ((lower + upper) @ gamma)
    quadratic = M0.T @ P @ M0 - ratio_squared * P - 2 * (W.T @ (lower @ upper @ gamma) @ W)
    return [[quadratic, coupling], [coupling.T, M.T @ P @ M - 2 * gamma]]


def iss_blocks(
    A0: Matrix,
    A: Matrix,
    W: Matrix,
    lower: Matrix,
    upper: Matrix,
    P: Matrix,
    integral: Matrix,
    state: Matrix,
    products: Matrix,
    sector: Matrix,
    inputs: Matrix,
) -> Blocks:
    """Build the inequality of input-to-state stability with V = xᵀPx + 2 Σ_i Λ_i ∫_0^{w_i x} f_i.

    If it is negative definite, P and Ξ_0 are positive definite and Λ, Υ, Θ ⪰ 0, then V' ≤ −xᵀΞ_0x + gᵀΦg.

    Args:
        integral, state, products, sector, inputs: Λ (K, K), Ξ_0 (n, n), Υ, Θ (K, K) and Φ (n, n).
    """
    growth, mixed = A0.T @ P, integral @ W @ A
    quadratic = growth + growth.T + state - 2 * (W.T @ (lower @ upper @ sector) @ W)
    coupling = P @ A + A0.T @ W.T @ integral + W.T @ products + W.T @ ((lower + upper) @ sector)
    nonlinear = mixed + mixed.T - 2 * sector
    forced = integral @ W
    return [[quadratic, coupling, P], [coupling.T, nonlinear, forced], [P, forced.T, -1 * inputs]]
