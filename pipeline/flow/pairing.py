"""The interface of a coupling: its arguments and its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Solve = Callable[[Tensor, Tensor], Tensor]
"""(x, c) → x: a model's field integrated from one end of time to the other, (B, …) → (B, …). c is (B, C), or (B / K, C)
if K successive x share one."""


@dataclass(frozen=True)
class Source:
    """Source of randomness: draws from one generator on the CPU and moves the numbers to the data's device."""

    generator: torch.Generator

    def like(self, x: Tensor) -> Tensor:
        """Draw standard normal noise shaped as ``x``."""
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)

    def choose(self, weights: Tensor) -> Tensor:
        """Draw one column of each row of ``weights`` (B, M) with probability proportional to its weight: (B,)."""
        return torch.multinomial(weights.cpu(), 1, generator=self.generator).squeeze(1).to(weights.device)


@dataclass(frozen=True)
class Models:
    """The solves that a coupling may call.

    Attributes:
        reconstruct: x0 → φ_N(x0, c): the model being trained, in the N steps of inference.
        teach: x0 → x1: the frozen base model, by a fine solve.
        invert: x1 → x0: the frozen base model, by a fine solve backwards in time.
    """

    reconstruct: Solve
    invert: Solve
    teach: Solve


def no_model(_x: Tensor, _condition: Tensor) -> Tensor:
    """Stand in for a solve when there is no model.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("this coupling asks for a solve by a model that training was not given")


NO_MODELS = Models(no_model, no_model, no_model)


@dataclass(frozen=True)
class Pair:
    """Noise and data to train on, row by row.

    Attributes:
        x0, x1: (B, …) each, for the conditions that the coupling was given, in their order.
        metrics: scalars that the coupling reports, by name.
    """

    x0: Tensor
    x1: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


Coupling = Callable[[Tensor, Tensor, Source, Models], Pair]
"""(x1, condition, source, models) → pairs for these conditions; x1 (B, …), condition (B, C)."""
