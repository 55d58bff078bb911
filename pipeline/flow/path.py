"""Probability paths from noise x0 to data x1, and the velocity that a flow-matching net is trained to predict."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AffinePath:
    """x_t = α(t) x1 + σ(t) x0 + spread · ε with target velocity α'(t) x1 + σ'(t) x0.

    Attributes:
        alpha, sigma: coefficients at times t, any shape → that shape.
        alpha_rate, sigma_rate: their derivatives in t.
        spread: standard deviation of the Gaussian noise ε around the line (0: none).
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    alpha_rate: Callable[[Tensor], Tensor]
    sigma_rate: Callable[[Tensor], Tensor]
    spread: float = 0.0

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, epsilon: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A point of the path at t and its target velocity.

        Args:
            x0, x1: (B, …). t: (B,) in [0, 1]. epsilon: standard normal, shaped as x1; needed where ``spread`` > 0.

        Returns:
            x_t and the target velocity, both (B, …).
        """
        t = t.view(-1, *[1] * (x1.dim() - 1))
        x_t = self.alpha(t) * x1 + self.sigma(t) * x0
        if self.spread > 0:
            if epsilon is None:
                raise ValueError("this path is noisy around its line: epsilon is needed")
            x_t = x_t + self.spread * epsilon
        return x_t, self.alpha_rate(t) * x1 + self.sigma_rate(t) * x0


def i_cfm(sigma: float) -> AffinePath:
    """The line from x0 to x1 with Gaussian noise of deviation ``sigma`` around it (I-CFM, Tong et al. 2024)."""
    return AffinePath(
        alpha=lambda t: t,
        sigma=lambda t: 1 - t,
        alpha_rate=lambda t: t.new_ones(()),
        sigma_rate=lambda t: -t.new_ones(()),
        spread=sigma,
    )


def optimal_transport(sigma_min: float) -> AffinePath:
    """Lipman et al. (2023), eq. 22: x_t = t x1 + (1 − (1 − σ_min) t) x0, whose end keeps noise of size σ_min."""
    return AffinePath(
        alpha=lambda t: t,
        sigma=lambda t: 1 - (1 - sigma_min) * t,
        alpha_rate=lambda t: t.new_ones(()),
        sigma_rate=lambda t: t.new_full((), sigma_min - 1),
    )


PATHS: dict[str, Callable[[float], AffinePath]] = {"i_cfm": i_cfm, "ot": optimal_transport}
