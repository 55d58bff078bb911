"""Likelihood of a reconstruction's residual under a diagonal Gaussian: the general case of Theorem 2 of the paper.

For a residual e = φ_N(x0, c) − x1 of d components and Σ = diag(σ_1², …, σ_d²)

    NLL(e) = ½ Σ_i (e_i²/σ_i² + log σ_i²),    without the constant ½ d log 2π.

The loss is (2s/d) · NLL, averaged over the batch: mean_i(s e_i²/σ_i² + s log σ_i²). The scale s is held constant in
differentiation. It is s = √(A H), with A and H the arithmetic and the harmonic mean of the σ_i², so that the learning
rate and the gradient clipping of loss (6) can stay. Then

- equal variances give every component weight s/σ_i² = 1, and exactly the gradient of the mean square of loss (6);
- where σ_i² = E e_i², the gradient in e has the same mean square as that of loss (6): E‖∂/∂e‖² is
  (4s²/d²) Σ_i 1/σ_i² = 4 s²/(d H) against 4A/d. With s = A it would be A/H times as large, with s = H as small.

σ_i² is at least ``FLOOR`` times A. So a component that is reconstructed perfectly, such as one that never varies,
outweighs the others by a bounded factor only.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed, nn

FLOOR = 1e-4
"""Least variance of a component over the mean of all: no standard deviation is below 1/100 of the typical one."""

RUNNING_DECAY = 0.99
"""Decay of ``Profiled``'s running mean; its memory is about 100 batches."""

_TINY = 1e-12
"""Absolute lower bound of a variance, for a residual that vanishes in every component."""


def scaled_negative_log_likelihood(residual: Tensor, log_variance: Tensor) -> Tensor:
    """Compute (2s/d) · NLL, averaged over the batch; differentiable in both arguments.

    Args:
        residual: (B, …). log_variance: (…).
    """
    variance = log_variance.exp()
    with torch.no_grad():
        scale = (variance.mean() / variance.reciprocal().mean()).sqrt()
    return (scale * (residual.square() / variance + log_variance)).mean()


class Covariance(nn.Module):
    """Map a residual (B, …) to a loss, averaged over the batch. Its state is saved and resumed with the net.

    Attributes:
        measured: whether ``start`` is to be called with a measurement before the first loss.
    """

    measured = True

    def start(self, variance: Tensor) -> None:
        """Start from ``variance`` (…): the mean squared residual of each component before training."""
        raise NotImplementedError

    def forward(self, residual: Tensor) -> Tensor:
        raise NotImplementedError


class Identity(Covariance):
    """Σ = σ² I: the mean square, loss (6) of the paper (Theorem 2: Σ a fixed multiple of the identity)."""

    measured = False

    def start(self, variance: Tensor) -> None:
        """Do nothing: the loss does not depend on the variance."""

    def forward(self, residual: Tensor) -> Tensor:
        return residual.square().mean()


class Fixed(Covariance):
    """Σ keeps the values measured before training.

    Args:
        shape: of one residual, (…).
    """

    log_variance: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("log_variance", torch.zeros(*shape))

    def start(self, variance: Tensor) -> None:
        self.log_variance.copy_(_floored(variance).log())

    def forward(self, residual: Tensor) -> Tensor:
        return scaled_negative_log_likelihood(residual, self.log_variance)


class Learned(Covariance):
    """log σ_i² are parameters, trained with the net from the measured values; the optimum is σ_i² = E e_i².

    A projection before each loss keeps them above the floor. See ``Fixed`` for the arguments.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(*shape))

    @torch.no_grad()
    def start(self, variance: Tensor) -> None:
        self.log_variance.copy_(_floored(variance).log())

    def forward(self, residual: Tensor) -> Tensor:
        with torch.no_grad():
            self.log_variance.clamp_(min=_floor(self.log_variance.exp()).log())
        return scaled_negative_log_likelihood(residual, self.log_variance)


class Profiled(Covariance):
    """Σ maximised out of the likelihood: ½ Σ_i log m_i, with m_i = E e_i².

    m_i is a running mean over batches, because the logarithm of one batch's mean is biased downwards:
    m ← ``RUNNING_DECAY`` m + (1 − ``RUNNING_DECAY``) · (this batch's mean of e²). It starts from the measured values
    and is updated before it is used. With several processes it averages over all their batches. The gradient is
    Σ_i e_i ∂e_i/m_i with m held constant; this is the gradient of ½ Σ_i log m_i if m is the mean at the present
    weights. See ``Fixed`` for the arguments.
    """

    mean_square: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean_square", torch.ones(*shape))

    def start(self, variance: Tensor) -> None:
        self.mean_square.copy_(variance)

    def forward(self, residual: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean_square.lerp_(_mean_over_processes(residual.square().mean(0)), 1 - RUNNING_DECAY)
        return scaled_negative_log_likelihood(residual, _floored(self.mean_square).log())


COVARIANCES: dict[str, Callable[[Sequence[int]], Covariance]] = {
    "identity": lambda _shape: Identity(),
    "fixed": Fixed,
    "learned": Learned,
    "profiled": Profiled,
}
"""Covariance by name: a function of the shape of one residual."""


def _floor(variance: Tensor) -> Tensor:
    """Lower bound of a component's variance given all of them, a scalar."""
    return (FLOOR * variance.mean()).clamp(min=_TINY)


def _floored(variance: Tensor) -> Tensor:
    return variance.clamp(min=_floor(variance))


def _mean_over_processes(value: Tensor) -> Tensor:
    """Average ``value`` over the data-parallel processes, each of which has its own batch."""
    if not distributed.is_initialized():
        return value
    total = value.contiguous()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
