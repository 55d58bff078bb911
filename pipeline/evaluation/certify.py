"""What can be proved of a residual as it is stored and run, and how fast its neighbouring states really approach."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import PersidskiiSettings, ResidualRecipe
from pipeline.errors import UserError
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.nets.persidskii import FixedMatrices, PersidskiiResidual
from pipeline.nets.residual import longest_step, shorter_ratio, step_ratio
from pipeline.ode.fixed_step import Field
from pipeline.seeding import derive
from pipeline.stability.certificate import CERTIFIED, Certificate
from pipeline.stability.contraction import certify_flow, certify_step, largest_rate, smallest_ratio
from pipeline.stability.falsify import cross_check, diverging_input
from pipeline.stability.iss import certify_iss
from pipeline.stability.regions import certify_region
from pipeline.stability.system import NONLINEARITIES, Array, System

_ROUNDING = 1e-4  # of a distance in float32, relative

SEARCHED = 6
"""Most states for which matrices are searched for where none prove it: seconds; a minute at 32."""


@dataclass(frozen=True)
class Decay:
    """Factors by which the distance of two states changes in an Euler step of the policy, in the norm P.

    Attributes:
        largest, median: over pairs, steps and conditions. certified: the factor that was proved of the shortest step,
            which contracts least; 0 without a proof.
        pairs: how many pairs of states were followed.
    """

    largest: float
    median: float
    certified: float
    pairs: int


def certify_residual(residual: PersidskiiResidual, recipe: ResidualRecipe) -> dict[str, Certificate]:
    """Certificates by name: ``step`` (the longest Euler step that is run), ``flow`` (the ODE), and of small systems
    ``iss`` and ``region`` (around the equilibrium of g = 0, at a rate half-way from the flow's to that at the
    equilibrium itself).

    The stored norm and multipliers are tried first, which prove a construction at any size; small systems are also
    searched for the best claim. From the step's proof follows the flow's of rate (1 − ρ²)/2h with Γ/h: its inequality
    less the positive semidefinite h²[A0, A]ᵀP[A0, A], over h.

    Raises:
        UserError: the falsifier broke a certificate, so that one of the two is wrong.
    """
    settings, matrices = recipe.net, residual.source
    assert isinstance(settings, PersidskiiSettings) and isinstance(matrices, FixedMatrices)
    system, h = matrices.system(residual.functions), longest_step(recipe)
    norm, multipliers = matrices.norm.cpu().numpy(), matrices.multipliers.cpu().numpy()
    ratio = step_ratio(settings, h)
    small = system.n <= SEARCHED

    step = certify_step(system, ratio, h, norm, multipliers)
    rate = settings.rate
    if step.status == CERTIFIED:
        rate, multipliers = (1 - ratio**2) / (2 * h) * (1 - 1e-6), multipliers / h
    flow = certify_flow(system, rate, norm, multipliers)
    if small:
        step, flow = _better(step, smallest_ratio(system, h)), _better(flow, largest_rate(system))
    found = {"step": step, "flow": flow}
    if small and all(NONLINEARITIES[name].strictly_increasing for name in system.functions):
        found["iss"] = certify_iss(system)
    if small and found["flow"].status == CERTIFIED:
        center = np.zeros(system.n)
        at_center = float(-np.linalg.eigvals(system.jacobian(center)).real.max())
        found["region"] = certify_region(system, center, (found["flow"].claim["rate"] + at_center) / 2)
    _falsify(found, system)
    return found


def _falsify(found: Mapping[str, Certificate], system: System) -> None:
    """Search for what would disprove the certificates.

    Raises:
        UserError: there is something.
    """
    for name, certificate in found.items():
        try:
            cross_check(certificate, system)
        except AssertionError as error:
            raise UserError(f"certificate {name}: {error}") from None
    if any(certificate.status == CERTIFIED for certificate in found.values()):
        diverging = diverging_input(system)
        if diverging is not None:
            raise UserError(f"certificates: certified, and diverging under an input: {diverging.to_dict()}")


def _better(first: Certificate, second: Certificate) -> Certificate:
    """The one that proves more."""
    if second.status != CERTIFIED:
        return first
    if first.status != CERTIFIED:
        return second
    if "ratio" in first.claim:
        return min(first, second, key=lambda certificate: certificate.claim["ratio"])
    return max(first, second, key=lambda certificate: certificate.claim["rate"])


@torch.no_grad()
def measure_decay(
    policy: ResidualPolicy, condition: Tensor, nfe: int, certificate: Certificate, *, seed: int, distance: float = 0.1
) -> Decay:
    """Follow neighbouring states through the policy's own Euler steps, from samples of its base model.

    Args:
        condition: (B, C). nfe: of both solves. certificate: of the step; its norm is measured in, the Euclidean one
            where it has none.
        distance: of the neighbours, in normalised action units: standard deviation of each component.

    Raises:
        UserError: a pair approached more slowly than was proved.
    """
    assert isinstance(policy.residual, PersidskiiResidual)
    n = policy.residual.source.n
    root: Array = np.eye(n)
    if "P" in certificate.witness:
        root = np.linalg.cholesky(certificate.witness["P"]).astype(np.float64)
    generator = torch.Generator().manual_seed(derive(seed, "decay"))
    shape = (len(condition), policy.prediction_horizon, policy.action_dim)
    noise = torch.randn(shape, generator=generator)
    anchor = policy.anchor(condition, noise, nfe)
    field = policy.residual.begin(anchor, condition, noise)
    neighbour = anchor + distance * torch.randn(shape, generator=generator)
    ratios = np.stack([after / before for before, after in _distances(field, anchor, neighbour, policy, root, n)])
    proved = np.zeros(policy.steps)
    if certificate.status == CERTIFIED:
        shares = np.diff(policy.grid) / certificate.claim["step"]
        proved = np.array([shorter_ratio(certificate.claim["ratio"], share) for share in shares])
        if (ratios > (1 + _ROUNDING) * proved[:, None]).any():
            raise UserError(f"certificate step: neighbours were seen to approach by {ratios.max(1)}, proved {proved}")
    return Decay(float(ratios.max()), float(np.median(ratios)), float(proved.max()), ratios.shape[1])


def _distances(
    field: Field, x: Tensor, y: Tensor, policy: ResidualPolicy, root: Array, n: int
) -> Iterator[tuple[Array, Array]]:
    """|x − y|_P before and after each step, for each state."""
    for t, end in zip(policy.grid[:-1], policy.grid[1:], strict=True):
        before = _length(x - y, root, n)
        x, y = x + (end - t) * field(t, x), y + (end - t) * field(t, y)
        yield before, _length(x - y, root, n)


def _length(difference: Tensor, root: Array, n: int) -> Array:
    return np.linalg.norm(difference.double().numpy().reshape(-1, n) @ root, axis=1)
