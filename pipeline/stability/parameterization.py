"""Three trainable parameterizations of system (7), as torch modules with one interface; README.md derives them.

``ContractingFlow`` and ``ContractingStep`` contract for every value of their parameters. ``UnconstrainedSystem`` has no
guarantee; the penalties steer it. All compute in float64 and round once to the type of their parameters, so training in
float32 affects the guarantee only by this rounding. ``margin`` leaves room for it, unless A0 is so large relative to
the rate, or P so ill-conditioned, that rounding A0 changes the rate. A certificate shows whether it does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.stability.inequalities import Blocks, flow_blocks, step_blocks
from pipeline.stability.system import LEAK, Array, System, nonlinearity

Matrices = tuple[Tensor, list[Tensor], list[Tensor]]
"""A0 (n, n), the A_j (n, k_j) and the W_j (k_j, n)."""

ACTIVATIONS = {
    "tanh": torch.tanh,
    "arctan": torch.atan,
    "softsign": F.softsign,
    "relu": torch.relu,
    "leaky_relu": lambda s: F.leaky_relu(s, LEAK),
}
"""``system.NONLINEARITIES`` in torch."""

EPSILON = 1e-3
"""P ⪰ εI, Γ ⪰ εI."""

MARGIN = 1e-3
"""Relative distance that the constructions keep from the boundary of their guarantee."""


class Parameterization(nn.Module):
    """Base class with weights W_j, a norm P = … + CCᵀ + εI and multipliers Γ_j > 0.

    Args:
        n: dimension of the state. widths: k_j. functions: f_j, names in ``ACTIVATIONS``.

    Raises:
        ValueError: an argument is out of range, or ``widths`` and ``functions`` differ in length.
    """

    def __init__(self, n: int, widths: Sequence[int], functions: Sequence[str], multiplier: float) -> None:
        super().__init__()
        if n < 1 or not widths or any(k < 1 for k in widths) or len(widths) != len(functions):
            raise ValueError(
                f"n, widths, functions: given {n}, {list(widths)}, {list(functions)}, allowed: positive, f per width"
            )
        self.n, self.widths, self.functions = n, list(widths), list(functions)
        self.upper = [nonlinearity(name).upper for name in functions]
        self.W = nn.ParameterList(torch.randn(k, n) * (0.5 / math.sqrt(n)) for k in widths)
        self.C = nn.Parameter(torch.eye(n))
        raw = math.log(math.expm1(multiplier))
        self.raw_gamma = nn.ParameterList(torch.full((k,), raw) for k in widths)

    def matrices(self) -> Matrices:
        """Compute A0, all A_j and all W_j, differentiable, in the type of the parameters."""
        A0, A, W = self._matrices()
        kind = self.C.dtype
        return A0.to(kind), [a.to(kind) for a in A], [w.to(kind) for w in W]

    def certificate_matrices(self) -> tuple[Tensor, list[Tensor]]:
        """Compute P (n, n) and the diagonals Γ_j (k_j,), differentiable, in float64."""
        P = self._norm()
        return (P + P.T) / 2, self._gamma()  # symmetric to the last bit

    @torch.no_grad()
    def system(self) -> System:
        """Return the system of ``matrices``, rounded to the parameters' type and stored in float64."""
        A0, A, W = self.matrices()
        return System(_numpy(A0), tuple(_numpy(a) for a in A), tuple(_numpy(w) for w in W), tuple(self.functions))

    @torch.no_grad()
    def witness(self) -> tuple[Array, Array]:
        """Return P (n, n) and all Γ_j in one vector (K,), for ``contraction.certify_flow`` and ``certify_step``."""
        P, gamma = self.certificate_matrices()
        return _numpy(P), _numpy(torch.cat(gamma))

    def _matrices(self) -> Matrices:
        raise NotImplementedError

    def _gamma(self) -> list[Tensor]:
        return [F.softplus(raw.double()) + EPSILON for raw in self.raw_gamma]

    def _root(self) -> Tensor:
        """Compute CCᵀ + εI."""
        C = self.C.double()
        return C @ C.T + EPSILON * torch.eye(self.n, dtype=C.dtype, device=C.device)

    def _norm(self) -> Tensor:
        return self._root()

    def _weights(self) -> list[Tensor]:
        return [w.double() for w in self.W]


class ContractingFlow(Parameterization):
    """System whose flow contracts, |δ(t)|_P ≤ e^{−λt} |δ(0)|_P, for all parameters C, E_j, B, S, W_j, Γ_j.

    A_j = P⁻¹(E_jΓ_j^{1/2} − W_jᵀL_jΓ_j), A0 = P⁻¹(−λ(1 + margin)P − ¼ Σ_j E_jE_jᵀ − BBᵀ + S − Sᵀ), P = CCᵀ + εI.

    Args:
        rate: λ > 0. See ``Parameterization`` for the others.
    """

    def __init__(
        self, n: int, widths: Sequence[int], functions: Sequence[str], rate: float, margin: float = MARGIN
    ) -> None:
        super().__init__(n, widths, functions, multiplier=0.1)
        if not (rate > 0 and margin > 0):
            raise ValueError(f"rate, margin: given {rate}, {margin}, allowed: above 0")
        self.rate, self.margin = rate, margin
        self.E = nn.ParameterList(torch.randn(n, k) * (0.15 / math.sqrt(n)) for k in widths)
        self.B = nn.Parameter(torch.randn(n, n) * (0.1 / math.sqrt(n)))
        self.S = nn.Parameter(torch.zeros(n, n))

    def _matrices(self) -> Matrices:
        P, gamma, W = self._norm(), self._gamma(), self._weights()
        E, B, S = [e.double() for e in self.E], self.B.double(), self.S.double()
        factor = torch.linalg.cholesky(P)
        A = [
            torch.cholesky_solve(e * g.sqrt() - w.T * (upper * g), factor)
            for e, w, upper, g in zip(E, W, self.upper, gamma, strict=True)
        ]
        dissipated = -(self.rate * (1 + self.margin)) * P - B @ B.T + S - S.T
        for e in E:
            dissipated = dissipated - 0.25 * e @ e.T
        return torch.cholesky_solve(dissipated, factor), A, W


class ContractingStep(Parameterization):
    """System whose Euler step x⁺ = x + h x' contracts, |δ⁺|_P ≤ ρ |δ|_P, for all parameters C, X, Y_j, Z, W_j, Γ_j.

    [I + hA0, hA_1, …] = R_P⁻¹ K R_H, with R_PᵀR_P = P = Σ_j W_jᵀL_jΓ_jL_jW_j/(2ρ²) + CCᵀ + εI and
    R_HᵀR_H = [[ρ²P, −WᵀLΓ], [−ΓLW, 2Γ]]. K comes from an orthogonal Cayley transform, so that ‖K‖ ≤ 1 − margin.

    Args:
        step: h > 0. ratio: ρ in (0, 1]. See ``Parameterization`` for the others.
    """

    def __init__(
        self, n: int, widths: Sequence[int], functions: Sequence[str], step: float, ratio: float, margin: float = MARGIN
    ) -> None:
        if not (step > 0 and 0 < ratio <= 1 and 0 < margin < 1):
            raise ValueError(
                f"step, ratio, margin: given {step}, {ratio}, {margin}, allowed: above 0, in (0, 1], in (0, 1)"
            )
        super().__init__(n, widths, functions, multiplier=min(step, 1.0))
        self.step, self.ratio, self.margin = step, ratio, margin
        self.X = nn.Parameter(torch.zeros(n, n))
        self.Y = nn.ParameterList(torch.randn(n, k) * (0.25 * step / math.sqrt(n)) for k in widths)
        # start near I + hA0 = ρ²I, so that A0 is as large as the rate and not as 1/h
        self.Z = nn.Parameter(math.sqrt(max((1 - ratio) / (1 + ratio), 1e-3)) * torch.eye(n))

    def _norm(self) -> Tensor:
        P = self._root()
        for w, upper, g in zip(self._weights(), self.upper, self._gamma(), strict=True):
            P = P + (w.T * (upper * upper * g / (2 * self.ratio**2))) @ w
        return P

    def _matrices(self) -> Matrices:
        W, gamma = self._weights(), self._gamma()
        K0, K = self._contraction()
        # R_H = [[R_S, 0], [−(Γ/2)^{1/2}LW, (2Γ)^{1/2}]] with R_SᵀR_S = ρ²(CCᵀ + εI); only R_P has to be inverted
        moved = self.ratio * K0 @ torch.linalg.cholesky(self._root()).T
        for k, w, upper, g in zip(K, W, self.upper, gamma, strict=True):
            moved = moved - (k * (upper * (g / 2).sqrt())) @ w
        R_P = torch.linalg.cholesky(self._norm()).T
        identity = torch.eye(self.n, dtype=moved.dtype, device=moved.device)
        A0 = (torch.linalg.solve_triangular(R_P, moved, upper=True) - identity) / self.step
        A = [
            torch.linalg.solve_triangular(R_P, k * (2 * g).sqrt(), upper=True) / self.step
            for k, g in zip(K, gamma, strict=True)
        ]
        return A0, A, W

    def _contraction(self) -> tuple[Tensor, list[Tensor]]:
        """Compute the columns K_0 (n, n) and K_j (n, k_j) of K."""
        X, Y, Z = self.X.double(), [y.double() for y in self.Y], self.Z.double()
        skewed = X - X.T + Z @ Z.T
        for y in Y:
            skewed = skewed + y @ y.T
        identity = torch.eye(self.n, dtype=X.dtype, device=X.device)
        columns = torch.linalg.solve(identity + skewed, torch.cat([identity - skewed, *(2 * y for y in Y)], dim=1))
        K0, *K = ((1 - self.margin) * columns).split([self.n, *self.widths], dim=1)
        return K0, K


class UnconstrainedSystem(Parameterization):
    """System with free A0, A_j and W_j that starts near x' = −rate·x. Its P and Γ_j are for the penalties only.

    Args:
        rate: see above. See ``Parameterization`` for the others.
    """

    def __init__(self, n: int, widths: Sequence[int], functions: Sequence[str], rate: float = 1.0) -> None:
        super().__init__(n, widths, functions, multiplier=0.1)
        self.A0 = nn.Parameter(-rate * torch.eye(n) + torch.randn(n, n) * (0.01 / math.sqrt(n)))
        self.A = nn.ParameterList(torch.randn(n, k) * (0.05 / math.sqrt(n)) for k in widths)

    def _matrices(self) -> Matrices:
        return self.A0.double(), [a.double() for a in self.A], self._weights()


def diagonal_dominance_penalty(A0: Tensor, kappa: float) -> Tensor:
    """Compute Σ_i relu(a_ii + Σ_{k≠i} |a_ik| + κ). Zero means μ_∞(A0) ≤ −κ and says nothing about the A_j."""
    diagonal = A0.diagonal()
    return F.relu(diagonal + A0.abs().sum(1) - diagonal.abs() + kappa).sum()


def contraction_penalty(
    A0: Tensor,
    A: Sequence[Tensor],
    W: Sequence[Tensor],
    upper_slopes: Sequence[float],
    P: Tensor,
    gamma: Sequence[Tensor],
    rate: float,
    margin: float = MARGIN,
) -> Tensor:
    """Compute a penalty that is zero if and only if X ⪯ −margin·blkdiag(P, Γ), for the flow's inequality X ⪯ 0.

    The slopes are in [0, L]. The penalty is Σ relu(e + margin) over the eigenvalues e of X relative to blkdiag(P, Γ).
    """
    stacked, rows, upper, multipliers = _stacked(A, W, upper_slopes, gamma)
    blocks = flow_blocks(A0.double(), stacked, rows, torch.zeros_like(upper), upper, P.double(), multipliers, rate)
    return _positive_part(blocks, P.double(), multipliers, margin).to(A0.dtype)


def step_penalty(
    A0: Tensor,
    A: Sequence[Tensor],
    W: Sequence[Tensor],
    upper_slopes: Sequence[float],
    P: Tensor,
    gamma: Sequence[Tensor],
    step: float,
    ratio: float,
    margin: float = MARGIN,
) -> Tensor:
    """Compute the penalty of ``contraction_penalty`` for an Euler step of length h that contracts by ρ."""
    stacked, rows, upper, multipliers = _stacked(A, W, upper_slopes, gamma)
    M0 = torch.eye(len(A0), dtype=P.dtype, device=P.device) + step * A0.double()
    blocks = step_blocks(M0, step * stacked, rows, torch.zeros_like(upper), upper, P.double(), multipliers, ratio**2)
    return _positive_part(blocks, P.double(), multipliers, margin).to(A0.dtype)


def _stacked(
    A: Sequence[Tensor], W: Sequence[Tensor], upper_slopes: Sequence[float], gamma: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stack to A (n, K), W (K, n), L and Γ (K, K), in float64."""
    upper = [torch.full_like(g, slope, dtype=torch.float64) for g, slope in zip(gamma, upper_slopes, strict=True)]
    return (
        torch.cat(list(A), dim=1).double(),
        torch.cat(list(W)).double(),
        torch.cat(upper).diag(),
        torch.cat(list(gamma)).double().diag(),
    )


def _positive_part(blocks: Blocks, P: Tensor, gamma: Tensor, margin: float) -> Tensor:
    matrix = torch.cat([torch.cat(row, dim=1) for row in blocks])
    factor = torch.block_diag(torch.linalg.cholesky(P), gamma.diagonal().sqrt().diag())
    half = torch.linalg.solve_triangular(factor, matrix, upper=False)
    relative = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return F.relu(torch.linalg.eigvalsh((relative + relative.T) / 2) + margin).sum()


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().double().numpy()
    return array
