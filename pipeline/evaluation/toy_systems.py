"""Measure the trained systems of Figure 1: the effect of a disturbance, and regions of contraction."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.ode.fixed_step import Field, solve
from pipeline.stability.certificate import CERTIFIED, Certificate
from pipeline.stability.contraction import certify_flow, input_gain
from pipeline.stability.regions import certify_region, equilibria
from pipeline.stability.system import Array
from pipeline.tasks.toys import LAP, DrivenSystem, clock, curve

_LAPS = 2
_STEP = 0.05
_WANDER = 1.0  # random turn of the force's direction, in rad per root of time
_SHARES = (0.1, 0.5)  # rates of contraction of the regions, as shares of the rate near their equilibrium
_EDGE, _GRID = 2.0, 121  # states in the figure lie within ± the first; the second is their number per side
_LONG, _SHORT = 20.0, 0.5  # time after which all states have settled; time over which approach is measured
_NEAR = 0.01


@dataclass(frozen=True)
class Disturbed:
    """A system that follows the curve, under disturbances.

    Attributes:
        times: (S,). paths: (S, B, 2), each with its own disturbance. calm: the path without any, (S, 2).
        deviation: distance of each path from ``calm``, (S, B).
        tracking: the largest distance of ``calm`` from the curve.
        status: of the certificate of contraction at ``rate``, see ``pipeline.stability.certificate``.
        bound: the certificate's bound of the deviation at every time, (S,); None without a certificate.
    """

    times: Array
    paths: Array
    calm: Array
    deviation: Array
    tracking: float
    status: str
    rate: float
    bound: Array | None


def wandering_forces(size: float, trajectories: int, generator: torch.Generator) -> Tensor:
    """Draw forces of length ``size`` that turn at random, for every step of two laps, (S, B, 2).

    Their initial directions are evenly spaced.
    """
    steps = round(_LAPS * LAP / _STEP)
    turns = torch.randn(steps, trajectories, generator=generator, dtype=torch.float64) * _WANDER * _STEP**0.5
    angles = torch.arange(trajectories) * (2 * torch.pi / trajectories) + turns.cumsum(0)
    return size * torch.stack([angles.cos(), angles.sin()], dim=-1)


def disturb(driven: DrivenSystem, forces: Tensor) -> Disturbed:
    """Simulate ``driven`` along the curve from its start, under each of ``forces`` (S, B, 2) and without force."""
    none = forces.new_zeros(len(forces), 1, 2)
    pushed = torch.cat([none, forces], dim=1)
    states = [curve(torch.zeros(pushed.shape[1], dtype=torch.float64))]
    for k, force in enumerate(pushed):
        states.append(solve(_following(driven, force), states[-1], [k * _STEP, (k + 1) * _STEP], "rk4"))
    path = torch.stack(states).numpy()
    times = np.array([k * _STEP for k in range(len(path))])
    calm, paths = path[:, 0], path[:, 1:]
    certificate = certify_flow(driven.system, driven.rate, driven.metric, driven.multipliers)
    return Disturbed(
        times=times,
        paths=paths,
        calm=calm,
        deviation=np.linalg.norm(paths - calm[:, None], axis=-1),
        tracking=float(np.linalg.norm(calm - curve(torch.from_numpy(times)).numpy(), axis=-1).max()),
        status=certificate.status,
        rate=driven.rate,
        bound=_bound(certificate, float(forces.norm(dim=-1).max()), times),
    )


def _following(driven: DrivenSystem, force: Tensor) -> Field:
    """Make the field x' with the input at time t and with ``force`` (B, 2) added."""

    def field(t: float, x: Tensor) -> Tensor:
        pushed = driven.push(clock(torch.tensor([t], dtype=torch.float64)).numpy())
        return torch.from_numpy(driven.system.field(x.numpy(), pushed)) + force

    return field


def _bound(certificate: Certificate, size: float, times: Array) -> Array | None:
    """Bound the Euclidean deviation at ``times`` by gain · (1 − e^{−λt}) · size, from contraction at λ."""
    if certificate.status != CERTIFIED:
        return None
    grown: Array = -np.expm1(-certificate.claim["rate"] * times) * input_gain(certificate)["euclidean"] * size
    return grown


@dataclass(frozen=True)
class Region:
    """A region in which a system contracts: |x − center|²_P ≤ level.

    Attributes:
        share: certified rate over the rate at which solutions near the center approach it.
        outline: of the ellipse, (S, 2).
        rate: the certified rate. input_radius: bound of |g − g*|_P that keeps states inside.
        area: in the plane. slowest: the smallest measured rate at which two solutions inside approach each other.
    """

    center: Array
    share: float
    outline: Array
    rate: float
    input_radius: float
    area: float
    slowest: float


@dataclass(frozen=True)
class Settled:
    """A system that was trained to bring states to two places.

    Attributes:
        equilibria: (E, 2). stable: whether solutions near them approach them, (E,).
        regions: certified regions around the stable ones.
        places (Y, X, 2), velocity (Y, X, 2): its field on a grid.
        target: (Y, X), index of the stable equilibrium that the solution from there reaches, −1 for none.
    """

    equilibria: Array
    stable: Array
    regions: list[Region]
    places: Array
    velocity: Array
    target: Array


def settle(driven: DrivenSystem) -> Settled:
    """Find the equilibria of ``driven``, and certify regions of contraction around them, at two rates each."""
    system, g = driven.system, driven.offset
    rest = equilibria(system, g)
    growth = np.linalg.eigvals(system.jacobian(rest)).real.max(axis=-1)
    wanted = [(x, share, -share * top) for x, top in zip(rest, growth, strict=True) if top < 0 for share in _SHARES]
    certified = [
        (share, certify_region(system, x, float(rate)))
        for x, share, rate in tqdm(wanted, desc="certify regions", unit="region")
    ]
    places = np.stack(np.meshgrid(np.linspace(-_EDGE, _EDGE, _GRID), np.linspace(-_EDGE, _EDGE, _GRID)), axis=-1)
    ends = _later(driven, places.reshape(-1, 2), _LONG)
    stable = rest[growth < 0]
    apart = np.linalg.norm(ends[:, None] - stable, axis=-1)
    near = (apart < _NEAR) * (1 + np.arange(len(stable)))
    return Settled(
        equilibria=rest,
        stable=growth < 0,
        regions=[_region(driven, share, found) for share, found in certified if found.status == CERTIFIED],
        places=places,
        velocity=system.field(places, g),
        target=near.max(axis=1, initial=0).reshape(places.shape[:2]) - 1,
    )


def _region(driven: DrivenSystem, share: float, certificate: Certificate) -> Region:
    P, center = certificate.witness["P"], certificate.witness["center"]
    level, rate = certificate.claim["level"], float(certificate.claim["rate"])
    angles = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    root = np.linalg.cholesky(np.linalg.inv(P / level))
    outline = center + circle @ root.T
    pairs = np.array(list(combinations(outline[:-1:15], 2)))
    later = _later(driven, pairs.reshape(-1, 2), _SHORT).reshape(pairs.shape)
    before, after = (np.sqrt(np.einsum("bi,ij,bj->b", d, P, d)) for d in (_difference(pairs), _difference(later)))
    return Region(
        center=center,
        share=share,
        outline=outline,
        rate=rate,
        input_radius=float(certificate.claim["input_radius"]),
        area=float(np.pi * np.sqrt(level**2 / np.linalg.det(P))),
        slowest=float(np.log(before / after).min() / _SHORT),
    )


def _difference(pairs: Array) -> Array:
    """Subtract the second from the first of the pairs (B, 2, n), (B, n)."""
    difference: Array = pairs[:, 0] - pairs[:, 1]
    return difference


def _later(driven: DrivenSystem, states: Array, time: float) -> Array:
    """Simulate the states (B, 2) for ``time``."""
    grid = np.linspace(0, time, max(2, round(time / _STEP) + 1)).tolist()

    def field(_t: float, x: Tensor) -> Tensor:
        return torch.from_numpy(driven.system.field(x.numpy(), driven.offset))

    later: Array = solve(field, torch.from_numpy(states), grid, "rk4").numpy()
    return later
