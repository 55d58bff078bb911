"""Probability paths from noise x0 to data x1, and their velocities, which a flow-matching net learns to predict."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

STILL = 1e-5
"""Time before t = 1 from which ``variance_preserving`` stands still."""


@dataclass(frozen=True)
class AffinePath:
    """x_t = α(t) x1 + σ(t) x0 + spread · ε with target velocity α'(t) x1 + σ'(t) x0.

    Attributes:
        alpha, sigma: coefficients at times t, any shape → that shape.
        alpha_rate, sigma_rate: their derivatives in t.
        spread: standard deviation of the Gaussian noise ε around the line (0: none).
        source_scale: standard deviation of the source. A solve starts from x(0) = source_scale · noise; ``sample``
            takes the unscaled noise x0.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    alpha_rate: Callable[[Tensor], Tensor]
    sigma_rate: Callable[[Tensor], Tensor]
    spread: float = 0.0
    source_scale: float = 1.0

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, epsilon: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute a point of the path at t and its target velocity.

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
    """Make the line from x0 to x1 with Gaussian noise of deviation ``sigma`` around it (I-CFM, Tong et al. 2024)."""
    return AffinePath(
        alpha=lambda t: t,
        sigma=lambda t: 1 - t,
        alpha_rate=lambda t: t.new_ones(()),
        sigma_rate=lambda t: -t.new_ones(()),
        spread=sigma,
    )


def optimal_transport(sigma_min: float) -> AffinePath:
    """x_t = t x1 + (1 − (1 − σ_min) t) x0 (Lipman et al. 2023, eq. 22); its end keeps noise of size σ_min."""
    return AffinePath(
        alpha=lambda t: t,
        sigma=lambda t: 1 - (1 - sigma_min) * t,
        alpha_rate=lambda t: t.new_ones(()),
        sigma_rate=lambda t: t.new_full((), sigma_min - 1),
    )


def variance_preserving(sigma: float = 0.0, *, beta_min: float = 0.1, beta_max: float = 20.0) -> AffinePath:
    """Make the path of the variance-preserving diffusion (Lipman et al. 2023, eq. 19; Song et al. 2021).

    With s = 1 − t and T = ∫_0^s β = β_min s + ½ (β_max − β_min) s²: α = exp(−T/2) and σ² = 1 − α². The start,
    N(α(0) x1, 1 − α(0)²) with α(0) = 0.0066, is approximated by N(0, 1).

    σ falls as √(β_min s) towards the data, so σ' has no bound there. For that reason Lipman et al. train and solve on
    [0, 1 − 1e-5]. Here t stays in [0, 1] as for the other paths, and the path stands still over the last ``STILL``: its
    end keeps noise of size 0.001, and |σ'| is at most 50.

    Args:
        sigma: must be 0; this path has no noise level to choose.
        beta_min, beta_max: rate of the diffusion at the data and at the noise, in 1 over the unit of t.

    Raises:
        ValueError: ``sigma`` is not 0.
    """
    if sigma != 0:
        raise ValueError(f"sigma of path vp: given {sigma}, allowed: 0")

    def integral(t: Tensor) -> Tensor:
        s = (1 - t).clamp(min=STILL)
        return beta_min * s + (beta_max - beta_min) / 2 * s.square()

    def rate(t: Tensor) -> Tensor:
        s = 1 - t
        return (beta_min + (beta_max - beta_min) * s) * (s > STILL)

    def alpha(t: Tensor) -> Tensor:
        return (-integral(t) / 2).exp()

    def sigma_of(t: Tensor) -> Tensor:
        return (-(-integral(t)).expm1()).sqrt()  # 1 − exp(−T) would lose its digits where T is small

    return AffinePath(
        alpha=alpha,
        sigma=sigma_of,
        alpha_rate=lambda t: rate(t) / 2 * alpha(t),
        sigma_rate=lambda t: -rate(t) / 2 * (-integral(t)).exp() / sigma_of(t),
    )


def variance_exploding(sigma_min: float, *, sigma_max: float = 100.0) -> AffinePath:
    """Make the path of the variance-exploding diffusion (Lipman et al. 2023, eq. 18; Song et al. 2021).

    x_t = x1 + σ_min (σ_max/σ_min)^(1 − t) x0. The start x1 + σ_max x0 is approximated by the source N(0, σ_max²), so
    σ_max has to exceed the data's own deviation in every direction. If that deviation is s, the samples' deviation is
    too small by the share s²/(2 σ_max²). Song & Ermon (2020) advise the greatest distance between two data: 50 for
    CIFAR-10 in [0, 1], as in Song et al. (2021), hence the default of 100 in [-1, 1]. There s is at most 15 and the
    share 1 %.

    Args:
        sigma_min: deviation of the noise that the end keeps, in the data's unit. sigma_max: deviation of the source.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma of path ve: given {sigma_min}, allowed: greater than 0 and less than {sigma_max}")
    ratio = sigma_max / sigma_min

    def sigma_of(t: Tensor) -> Tensor:
        return sigma_min * ratio ** (1 - t)

    return AffinePath(
        alpha=lambda t: t.new_ones(t.shape),
        sigma=sigma_of,
        alpha_rate=lambda t: t.new_zeros(()),
        sigma_rate=lambda t: -math.log(ratio) * sigma_of(t),
        source_scale=sigma_max,
    )


def stochastic_interpolant(sigma: float = 0.0) -> AffinePath:
    """Make the trigonometric interpolant x_t = sin(πt/2) x1 + cos(πt/2) x0 (Albergo & Vanden-Eijnden 2023).

    With noise of deviation ``sigma`` around it, as in ``i_cfm``, it is the VP-CFM of Tong et al. (2024). The original
    has no such noise.
    """
    quarter = math.pi / 2
    return AffinePath(
        alpha=lambda t: (quarter * t).sin(),
        sigma=lambda t: (quarter * t).cos(),
        alpha_rate=lambda t: quarter * (quarter * t).cos(),
        sigma_rate=lambda t: -quarter * (quarter * t).sin(),
        spread=sigma,
    )


PATHS: dict[str, Callable[[float], AffinePath]] = {
    "i_cfm": i_cfm,
    "ot": optimal_transport,
    "vp": variance_preserving,
    "ve": variance_exploding,
    "si": stochastic_interpolant,
}
"""Path by name, a function of the settings' ``sigma``: noise around the line (i_cfm, si) or at the end (ot, ve), or 0
(vp)."""
