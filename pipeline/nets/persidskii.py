"""The Persidskii (ControlSynth) residual: system (7) of arXiv 2510.02081, anchored at the base model's sample."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from pipeline.nets.mlp import MLP
from pipeline.nets.sharing import repeated
from pipeline.ode.fixed_step import Field
from pipeline.stability.parameterization import ACTIVATIONS, Parameterization
from pipeline.stability.system import System


class FixedMatrices(nn.Module):
    """Matrices as plain numbers, in the precision of storage and inference; nothing is trained.

    Args:
        n: number of states. widths: k_j.

    Attributes:
        norm: P (n, n), float64. multipliers: all Γ_j in one vector (K,), float64. Both are the proof that belongs to
            the matrices, if these were constructed or penalised to have one.
    """

    linear: Tensor
    norm: Tensor
    multipliers: Tensor

    def __init__(self, n: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.n = n
        self.widths = tuple(widths)
        self.register_buffer("linear", torch.zeros(n, n))
        for j, width in enumerate(widths):
            self.register_buffer(f"outer{j}", torch.zeros(n, width))
            self.register_buffer(f"inner{j}", torch.zeros(width, n))
        self.register_buffer("norm", torch.zeros(n, n, dtype=torch.float64))
        self.register_buffer("multipliers", torch.zeros(sum(widths), dtype=torch.float64))

    @classmethod
    @torch.no_grad()
    def of(cls, source: Parameterization) -> Self:
        """Copy the present matrices of ``source`` in float32."""
        linear, outer, inner = source.matrices()
        fixed = cls(source.n, source.widths)
        fixed.linear.copy_(linear)
        for mine, given in zip([*fixed.matrices()[1], *fixed.matrices()[2]], [*outer, *inner], strict=True):
            mine.copy_(given)
        norm, multipliers = source.certificate_matrices()
        fixed.norm.copy_((norm + norm.T) / 2)
        fixed.multipliers.copy_(torch.cat(multipliers))
        return fixed.to(source.C.device)

    def matrices(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return A0, all A_j, all W_j."""
        branches = range(len(self.widths))
        return (
            self.linear,
            [getattr(self, f"outer{j}") for j in branches],
            [getattr(self, f"inner{j}") for j in branches],
        )

    def system(self, functions: Sequence[str]) -> System:
        """Convert the same numbers to float64, for the certificates."""
        linear, outer, inner = self.matrices()
        return System(
            linear.double().cpu().numpy(),
            tuple(a.double().cpu().numpy() for a in outer),
            tuple(w.double().cpu().numpy() for w in inner),
            tuple(functions),
        )


class PersidskiiResidual(nn.Module):
    """h(x) = A0 (x − x̄) + Σ_j A_j (f_j(W_j x) − f_j(W_j x̄)) + b(x̄, c, x0).

    It is x' = A0 x + Σ_j A_j f_j(W_j x) + g with the input g = −A0 x̄ − Σ_j A_j f_j(W_j x̄) + b. So x̄ is an
    equilibrium if b = 0, for any matrices. b is zero at first, so that a model starts as its base. A certificate is
    about the state for given inputs: two states approach each other; two samples x̄ need not.

    Args:
        source: the matrices, of the flattened chunk (n = H·A) or of one action (n = A); the latter are shared along the
            chunk.
        functions: names of f_j.
        input_net: b, as a field at time 0 of the state x̄ and the condition c or, if ``sees_noise``, (c, x0).
        sees_noise: whether b is given x0. The base model at one evaluation loses it: its samples from different noise
            are nearly the same, the mean.
    """

    def __init__(
        self, source: Parameterization | FixedMatrices, functions: Sequence[str], input_net: MLP, *, sees_noise: bool
    ) -> None:
        super().__init__()
        self.source = source
        self.functions = tuple(functions)
        self.input_net = input_net
        self.sees_noise = sees_noise

    def begin(self, anchor: Tensor, condition: Tensor, noise: Tensor) -> Field:
        """Return the field for these inputs, which stay the same along a solve.

        Args:
            anchor: x̄ = x(1), the base model's sample, (B, H, A). condition: (B, C), or (B / K, C) if K share one.
            noise: x0, the start of the base model's solve, (B, H, A).
        """
        if self.sees_noise:
            condition = torch.cat([repeated(condition, len(anchor)), noise.flatten(1)], dim=1)
        push = self._states(self.input_net(anchor.new_zeros(1), anchor, condition).to(anchor.dtype))
        linear, outer, inner = self.matrices()
        center = self._states(anchor)

        def autonomous(states: Tensor) -> Tensor:
            with torch.autocast(states.device.type, enabled=False):  # the certificate is about exactly these matrices
                total = states @ linear.T
                for name, a, w in zip(self.functions, outer, inner, strict=True):
                    total = total + ACTIVATIONS[name](states @ w.T) @ a.T
            return total

        at_center = autonomous(center)
        return lambda _t, x: (autonomous(self._states(x)) - at_center + push).view_as(x)

    def matrices(self) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """Return the present A0, all A_j, all W_j."""
        return self.source.matrices()

    def fixed(self) -> "PersidskiiResidual":
        """Copy this residual with its present matrices as plain numbers, to be stored, run and certified."""
        matrices = self.source if isinstance(self.source, FixedMatrices) else FixedMatrices.of(self.source)
        return PersidskiiResidual(matrices, self.functions, self.input_net, sees_noise=self.sees_noise)

    def _states(self, x: Tensor) -> Tensor:
        """(B, H, A) → (B, H·A), or (B, H, A) if A0 is shared along the chunk; A0 acts on the last axis."""
        return x if self.source.n == x.shape[-1] else x.flatten(1)
