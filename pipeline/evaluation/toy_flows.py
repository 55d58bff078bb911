"""Measure the flows of Figure 1: the steepness of a flow-matching field, and the detours of paths."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.flow.marginal import MarginalField
from pipeline.ode import dopri5
from pipeline.ode.fixed_step import Field, solve, uniform_grid
from pipeline.stability.system import Array

_EDGE = 1.8  # states in the figure lie within ± this
_TIMES, _PLACES = 101, 721
_SHOWN = 15  # paths from evenly spaced starts
_FINE = 400  # steps of a solve that approximates the flow itself
_APART = 0.1  # distance of two starts on both sides of zero
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Steepness:
    """A learned velocity field on the line, compared with the exact one.

    Attributes:
        times (T,), places (X,), velocity (X, T): the learned field.
        path_times (S,), paths (S, N): of the learned flow.
        learned, exact: the largest |∂v/∂x| at each of ``times`` on ``places``, (T,).
        apart: final distance of two paths that start on both sides of zero, ``start_apart`` apart.
    """

    times: Array
    places: Array
    velocity: Array
    path_times: Array
    paths: Array
    learned: Array
    exact: Array
    start_apart: float
    apart: float


@torch.no_grad()
def measure_steepness(learned: Field, exact: MarginalField) -> Steepness:
    """Measure a field on the line, (B, 1) → (B, 1) in float64, and the exact field that it was trained to match."""
    times, places = np.linspace(0, 1, _TIMES), np.linspace(-_EDGE, _EDGE, _PLACES)
    x = torch.from_numpy(places)[:, None]
    velocity = np.stack([learned(t, x)[:, 0].numpy() for t in times.tolist()], axis=1)
    starts = torch.linspace(-1.5, 1.5, _SHOWN, dtype=torch.float64)[:, None]
    grid = uniform_grid(_FINE)
    pair = torch.tensor([[-_APART / 2], [_APART / 2]], dtype=torch.float64)
    ends = solve(learned, pair, grid)
    return Steepness(
        times=times,
        places=places,
        velocity=velocity,
        path_times=np.array(grid),
        paths=_path(learned, starts, grid)[:, :, 0],
        learned=np.array([_steepest(learned, t, x) for t in times.tolist()]),
        exact=np.array([_steepest(exact, t, x) for t in times.tolist()]),
        start_apart=_APART,
        apart=float(ends[1] - ends[0]),
    )


@dataclass(frozen=True)
class Detours:
    """Paths of a flow on the plane, solved with the steps of its training, and finely.

    Attributes:
        shown: some paths, (S, N, 2). ends: many ends, (B, 2).
        length: mean length of the paths over the mean distance of their ends from their starts; 1 is straight.
        error, fine_error: mean distance of an end from the nearest datum, and the same for a fine solve.
        spread: root mean square distance of the ends from their mean, over the same for the data.
    """

    shown: Array
    ends: Array
    length: float
    error: float
    fine_error: float
    spread: float


@torch.no_grad()
def measure_detours(field: Field, points: Tensor, starts: Tensor, steps: int, shown: int) -> Detours:
    """Measure ``field`` solved from ``starts`` (B, D) in ``steps`` Euler steps; the first ``shown`` paths are kept."""
    path = _path(field, starts, uniform_grid(steps))
    fine = solve(field, starts, uniform_grid(_FINE))
    return _detours(path, fine, points, shown)


@torch.no_grad()
def measure_exact_detours(field: MarginalField, starts: Tensor, shown: int) -> Detours:
    """Measure the exact flow from ``starts`` (B, D); the first ``shown`` paths are kept."""
    states = [starts]
    for start, end in pairwise(uniform_grid(40)):
        solved = dopri5.solve(field, states[-1], start=start, end=end, rtol=_TOLERANCE, atol=_TOLERANCE)
        states.append(solved.end)
    return _detours(torch.stack(states).numpy(), states[-1], field.points, shown)


def _detours(path: Array, fine: Tensor, points: Tensor, shown: int) -> Detours:
    ends = path[-1]
    walked = np.linalg.norm(np.diff(path, axis=0), axis=-1).sum(0)
    return Detours(
        shown=path[:, :shown],
        ends=ends,
        length=float(walked.mean() / np.linalg.norm(ends - path[0], axis=-1).mean()),
        error=_distance(torch.from_numpy(ends), points),
        fine_error=_distance(fine, points),
        spread=_scatter(ends) / _scatter(points.numpy()),
    )


def _path(field: Field, starts: Tensor, grid: list[float]) -> Array:
    """Solve by Euler's method; return the states at the grid's times, (S, B, D)."""
    states = [starts]
    for times in pairwise(grid):
        states.append(solve(field, states[-1], times))
    return torch.stack(states).numpy()


def _steepest(field: Field, t: float, x: Tensor) -> float:
    """Compute the largest |∂v/∂x| of a field on the line at the places x (B, 1)."""
    slope: Tensor = torch.func.jvp(lambda places: field(t, places), (x,), (torch.ones_like(x),))[1]
    return float(slope.abs().max())


def _distance(ends: Tensor, points: Tensor) -> float:
    """Compute the mean distance from the nearest point."""
    return float(torch.cdist(ends, points).amin(dim=1).mean())


def _scatter(points: Array) -> float:
    return float(np.sqrt(np.square(points - points.mean(0)).sum(1).mean()))
