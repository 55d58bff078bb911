"""Certify a stored residual, and measure how fast its neighbouring states approach each other in a solve."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.nets.modes import in_evaluation_mode
from pipeline.nets.persidskii import FixedMatrices, PersidskiiResidual
from pipeline.nets.residual import longest_step, shorter_ratio, step_ratio
from pipeline.ode.fixed_step import Field
from pipeline.settings.schema import PersidskiiSettings, ResidualRecipe
from pipeline.stability.certificate import CERTIFIED, Certificate
from pipeline.stability.contraction import (
    certify_flow,
    certify_step,
    largest_rate,
    largest_rate_in,
    smallest_ratio,
    smallest_ratio_in,
)
from pipeline.stability.falsify import cross_check
from pipeline.stability.iss import certify_iss, iss_from_contraction
from pipeline.stability.regions import certify_region
from pipeline.stability.system import NONLINEARITIES, Array, System
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import derive

_ROUNDING = 1e-4  # relative rounding error of a distance in float32

SEARCHED = 6
"""Most states of a system for which semidefinite programs search for matrices: seconds; 32 would take many minutes."""


@dataclass(frozen=True)
class Decay:
    """Factors by which the distance of two states changes in an Euler step of the policy, in the norm P.

    Attributes:
        largest, median: over pairs, steps and conditions.
        certified: the factor proved for the shortest step, which contracts least; 0 without a proof.
        pairs: number of pairs of states followed.
    """

    largest: float
    median: float
    certified: float
    pairs: int


def certify_residual(residual: PersidskiiResidual, recipe: ResidualRecipe, rest: Array) -> dict[str, Certificate]:
    """Certify a residual; the certificates are ``step``, ``flow`` and, if possible, ``iss`` and ``region``.

    ``step`` is about the longest Euler step of inference, ``flow`` about the ODE. ``iss`` needs strictly increasing
    functions. ``region`` is for small systems, around ``rest``, at a rate half-way between the flow's and that at
    ``rest`` itself.

    The stored norm and multipliers are tried first, which prove a construction at any size, and then improved. For
    small systems other norms are searched for too. A proof for the step implies a rate of the flow, see the README of
    ``pipeline.stability``.

    Args:
        rest: (n,), a sample of the base model. The residual is at rest there while its input b is zero, so the region's
            bound of the inputs is a bound of b.

    Raises:
        UserError: the falsifier broke a certificate, so one of the two is wrong.
    """
    settings, matrices = recipe.net, residual.source
    assert isinstance(settings, PersidskiiSettings) and isinstance(matrices, FixedMatrices)
    system, h = matrices.system(residual.functions), longest_step(recipe)
    norm, multipliers = matrices.norm.cpu().numpy(), matrices.multipliers.cpu().numpy()
    small = system.n <= SEARCHED

    step = certify_step(system, step_ratio(settings, h), h, norm, multipliers)
    if step.status == CERTIFIED:
        step = _better(step, smallest_ratio_in(system, h, norm, multipliers))
        flow = largest_rate_in(system, norm, multipliers / h)
    else:
        flow = certify_flow(system, settings.rate, norm, multipliers)
        if flow.status == CERTIFIED:
            flow = _better(flow, largest_rate_in(system, norm, multipliers))
    if small:
        step, flow = _better(step, smallest_ratio(system, h)), _better(flow, largest_rate(system))
    found = {"step": step, "flow": flow}
    if all(NONLINEARITIES[name].strictly_increasing for name in system.functions):
        if flow.status == CERTIFIED:
            found["iss"] = iss_from_contraction(flow)
        elif small:
            found["iss"] = certify_iss(system)
    at_rest = float(-np.linalg.eigvals(system.jacobian(rest)).real.max())
    if small and at_rest > 0:
        least = flow.claim["rate"] if flow.status == CERTIFIED else 0.0
        found["region"] = certify_region(system, rest, (least + at_rest) / 2)
    _falsify(found, system)
    return found


def _falsify(found: Mapping[str, Certificate], system: System) -> None:
    """Search for counterexamples to the certificates.

    Raises:
        UserError: a counterexample was found.
    """
    for name, certificate in found.items():
        try:
            cross_check(certificate, system)
        except AssertionError as error:
            raise UserError(f"certificate {name}: {' '.join(str(error).split()):.300}") from None


def _better(first: Certificate, second: Certificate) -> Certificate:
    """Return the certificate that proves more; if neither does, the second, because its search went further."""
    if first.status != CERTIFIED or second.status != CERTIFIED:
        return first if first.status == CERTIFIED else second
    if "ratio" in first.claim:
        return min(first, second, key=lambda certificate: certificate.claim["ratio"])
    return max(first, second, key=lambda certificate: certificate.claim["rate"])


@torch.no_grad()
@in_evaluation_mode
def drawn_inputs(policy: ResidualPolicy, condition: Tensor, nfe: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the base model's samples x̄ (B, H, A) for ``condition`` (B, C); return them, the input b and their noise."""
    generator = torch.Generator().manual_seed(derive(seed, "certify"))
    noise = torch.randn(len(condition), policy.horizon, policy.action_dim, generator=generator)
    anchor = policy.anchor(condition, noise, nfe)
    return anchor, policy.residual.begin(anchor, condition, noise)(1.0, anchor), noise


def share_within(certificate: Certificate, inputs: Tensor) -> float:
    """Compute the share of the inputs b, in the form of states, that the certificate's region allows."""
    root = np.linalg.cholesky(certificate.witness["P"]).astype(np.float64)
    lengths = _length(inputs, root, certificate.system.n)
    return float((lengths <= certificate.claim["input_radius"]).mean())


@torch.no_grad()
@in_evaluation_mode
def measure_decay(
    policy: ResidualPolicy, condition: Tensor, nfe: int, certificate: Certificate, *, seed: int, distance: float = 0.1
) -> Decay:
    """Follow neighbouring states through the policy's own Euler steps, from samples of its base model.

    Args:
        condition: (B, C). nfe: of both solves together.
        certificate: of the step. Distances are in its norm, or in the Euclidean one if it has none.
        distance: of the neighbours, in normalised action units: standard deviation of each component.

    Raises:
        UserError: a pair approached more slowly than proved.
    """
    assert isinstance(policy.residual, PersidskiiResidual)
    n = policy.residual.source.n
    root: Array = np.eye(n)
    if "P" in certificate.witness:
        root = np.linalg.cholesky(certificate.witness["P"]).astype(np.float64)
    anchor, _, noise = drawn_inputs(policy, condition, nfe, seed)
    field = policy.residual.begin(anchor, condition, noise)
    generator = torch.Generator().manual_seed(derive(seed, "neighbours"))
    neighbour = anchor + distance * torch.randn(anchor.shape, generator=generator)
    ratios = np.stack([after / before for before, after in _distances(field, anchor, neighbour, policy, root, n)])
    proved = np.zeros(policy.steps)
    if certificate.status == CERTIFIED:
        shares = np.diff(policy.grid) / certificate.claim["step"]
        proved = np.array([shorter_ratio(certificate.claim["ratio"], share) for share in shares])
        excess = (ratios / proved[:, None]).max()
        if excess > 1 + _ROUNDING:
            raise UserError(f"certificate step: neighbours were seen {excess:.6f} times as far apart as proved")
    return Decay(float(ratios.max()), float(np.median(ratios)), float(proved.max()), ratios.shape[1])


def _distances(
    field: Field, x: Tensor, y: Tensor, policy: ResidualPolicy, root: Array, n: int
) -> Iterator[tuple[Array, Array]]:
    """Yield |x − y|_P before and after each step, for each state."""
    for t, end in zip(policy.grid[:-1], policy.grid[1:], strict=True):
        before = _length(x - y, root, n)
        x, y = x + (end - t) * field(t, x), y + (end - t) * field(t, y)
        yield before, _length(x - y, root, n)


def _length(difference: Tensor, root: Array, n: int) -> Array:
    return np.linalg.norm(difference.double().numpy().reshape(-1, n) @ root, axis=1)
