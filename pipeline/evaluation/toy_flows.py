"""What Figure 1 shows of two kinds of flows: how steep a field of flow matching gets, and how far round paths go."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.flow.marginal import MarginalField
from pipeline.ode import dopri5
from pipeline.ode.fixed_step import Field, solve, uniform_grid
from pipeline.stability.system import Array

_EDGE = 1.8  # the states shown lie within
_TIMES, _PLACES = 101, 721
_SHOWN = 15  # paths from evenly spaced starts
_FINE = 400  # steps of solves that stand for the flow itself
_APART = 0.1  # of two starts either side of zero
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Steepness:
    """A learned velocity field on the line, and the exact one beside it.

    Attributes:
        times (T,), places (X,), velocity (X, T): the learned field.
        path_times (S,), paths (S, N): of the learned flow.
        learned, exact: the largest |∂v/∂x| at each of ``times`` on ``places``, (T,).
        apart: how far ends lie apart that start ``start_apart`` apart, either side of zero.
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
    """Of a field on the line, (B, 1) → (B, 1) in float64, and of the exact one that it was trained towards."""
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
    """Paths of a flow on the plane, solved as it was trained and, if it is one, as a flow.

    Attributes:
        shown: some paths, (S, N, 2). ends: many ends, (B, 2).
        length: mean length of the paths over the mean distance of their ends from their starts; 1 is straight.
        error, fine_error: mean distance of an end from the nearest of the data, and that of a fine solve.
        spread: root mean square of the ends' distance from their mean, over the same of the data.
    """

    shown: Array
    ends: Array
    length: float
    error: float
    fine_error: float
    spread: float


@torch.no_grad()
def measure_detours(field: Field, points: Tensor, starts: Tensor, steps: int, shown: int) -> Detours:
    """Of ``field`` solved from ``starts`` (B, D) in ``steps`` Euler steps; the first ``shown`` paths are kept."""
    path = _path(field, starts, uniform_grid(steps))
    fine = solve(field, starts, uniform_grid(_FINE))
    return _detours(path, fine, points, shown)


@torch.no_grad()
def measure_exact_detours(field: MarginalField, starts: Tensor, shown: int) -> Detours:
    """Of the exact flow."""
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
    """The states at the grid's times, (S, B, D), by Euler's method."""
    states = [starts]
    for times in pairwise(grid):
        states.append(solve(field, states[-1], times))
    return torch.stack(states).numpy()


def _steepest(field: Field, t: float, x: Tensor) -> float:
    """The largest |∂v/∂x| of a field on the line at the places x (B, 1)."""
    slope: Tensor = torch.func.jvp(lambda places: field(t, places), (x,), (torch.ones_like(x),))[1]
    return float(slope.abs().max())


def _distance(ends: Tensor, points: Tensor) -> float:
    """Mean distance from the nearest point."""
    return float(torch.cdist(ends, points).amin(dim=1).mean())


def _scatter(points: Array) -> float:
    return float(np.sqrt(np.square(points - points.mean(0)).sum(1).mean()))
