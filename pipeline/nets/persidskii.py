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
    """Matrices as plain numbers, in the precision that they are stored and run in; nothing is trained.

    Args:
        n: states. widths: k_j.

    Attributes:
        norm: P (n, n), multipliers: all Γ_j in one vector (K,), float64: what goes with the matrices as a proof, where
            they were constructed or penalised to have one.
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
        """The matrices of ``source`` as they are now, in float32."""
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
        """A0, all A_j, all W_j."""
        branches = range(len(self.widths))
        return (
            self.linear,
            [getattr(self, f"outer{j}") for j in branches],
            [getattr(self, f"inner{j}") for j in branches],
        )

    def system(self, functions: Sequence[str]) -> System:
        """The same numbers in float64, to be certified."""
        linear, outer, inner = self.matrices()
        return System(
            linear.double().cpu().numpy(),
            tuple(a.double().cpu().numpy() for a in outer),
            tuple(w.double().cpu().numpy() for w in inner),
            tuple(functions),
        )


class PersidskiiResidual(nn.Module):
    """h(x) = A0 (x − x̄) + Σ_j A_j (f_j(W_j x) − f_j(W_j x̄)) + b(x̄, c, x0).

    It is x' = A0 x + Σ_j A_j f_j(W_j x) + g with the input g = −A0 x̄ − Σ_j A_j f_j(W_j x̄) + b, so that x̄ is an
    equilibrium where b = 0, whatever the matrices: with b zero at first, a model starts as its base. What can be
    certified is the state for inputs that are given: two states approach each other; two samples x̄ need not.

    Args:
        source: the matrices; of the flattened chunk (n = H·A) or, shared along the chunk, of one action (n = A).
        functions: names of f_j.
        input_net: b, as a field at time 0 of the state x̄ and the condition c or, if ``sees_noise``, (c, x0).
        sees_noise: whether b is given x0, which the base model at one evaluation forgets: what it makes of different
            noise is nearly the same, the mean.
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
        """The field for these inputs, which stay the same along a solve.

        Args:
            anchor: x̄ = x(1), the base model's sample, (B, H, A). condition: (B, C), or (B / K, C) where K share one.
            noise: x0 that the base model's solve started from, (B, H, A).
        """
        if self.sees_noise:
            condition = torch.cat([repeated(condition, len(anchor)), noise.flatten(1)], dim=1)
        push = self._states(self.input_net(anchor.new_zeros(1), anchor, condition).to(anchor.dtype))
        linear, outer, inner = self.matrices()
        center = self._states(anchor)

        def autonomous(states: Tensor) -> Tensor:
            with torch.autocast(states.device.type, enabled=False):  # what is certified is what these matrices do
                total = states @ linear.T
                for name, a, w in zip(self.functions, outer, inner, strict=True):
                    total = total + ACTIVATIONS[name](states @ w.T) @ a.T
            return total

        at_center = autonomous(center)
        return lambda _t, x: (autonomous(self._states(x)) - at_center + push).view_as(x)

    def matrices(self) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """A0, all A_j, all W_j, as they are now."""
        return self.source.matrices()

    def fixed(self) -> "PersidskiiResidual":
        """This residual with the matrices that it has now as plain numbers: what is stored, run and certified."""
        matrices = self.source if isinstance(self.source, FixedMatrices) else FixedMatrices.of(self.source)
        return PersidskiiResidual(matrices, self.functions, self.input_net, sees_noise=self.sees_noise)

    def _states(self, x: Tensor) -> Tensor:
        """(B, H, A) → (B, H·A) or, shared along the chunk, (B, H, A): the last axis is that of A0."""
        return x if self.source.n == x.shape[-1] else x.flatten(1)
