"""Measure the contents of Figure 1 on trained models."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm

from pipeline.evaluation.toy_flows import Detours, Steepness, measure_detours, measure_exact_detours, measure_steepness
from pipeline.evaluation.toy_systems import Disturbed, Settled, disturb, settle, wandering_forces
from pipeline.flow.marginal import MarginalField, eight_points, two_points
from pipeline.flow.path import i_cfm
from pipeline.ode.fixed_step import Field
from pipeline.settings.schema import ToySettings
from pipeline.stability.system import Array
from pipeline.tasks.toys import LAP, DrivenSystem, curve
from pipeline.utils.seeding import Generators

_STARTS, _SHOWN = 2000, 40  # number of paths measured, and of paths drawn
_FORCES = 16


@dataclass(frozen=True)
class Figure1:
    """Contents of the panels.

    Attributes:
        steepness: panel (a).
        points (M, 2), exact, detours: panel (b): the data, the exact flow's paths, each net's paths by name.
        demonstrated (S, 2), force, contracting, free: panel (c): the curve, the size of the disturbance, its effect on
            the contracting system, and on the others by name.
        settled: panel (d).
    """

    steepness: Steepness
    points: Array
    exact: Detours
    detours: dict[str, Detours]
    demonstrated: Array
    force: float
    contracting: Disturbed
    free: dict[str, Disturbed]
    settled: Settled


def measure_figure_1(flows: Mapping[str, Field], systems: Mapping[str, DrivenSystem], settings: ToySettings) -> Figure1:
    """Measure all panels on ``flows`` and ``systems``, which have the names of ``pipeline.training.toys``."""
    generators, path = Generators(settings.seed, "figure 1"), i_cfm(settings.sigma)
    starts = torch.randn(_STARTS, 2, generator=generators["starts"], dtype=torch.float64)
    forces = wandering_forces(settings.disturbance, _FORCES, generators["forces"])
    points = eight_points()
    disturbed = {
        name: disturb(system, forces)
        for name, system in tqdm(systems.items(), desc="disturb", unit="system")
        if name != "settle"
    }
    return Figure1(
        steepness=measure_steepness(flows["fm"], MarginalField(two_points(), path)),
        points=points.numpy(),
        exact=measure_exact_detours(MarginalField(points, path), starts, _SHOWN),
        detours={
            name: measure_detours(flow, points, starts, settings.nfe, _SHOWN)
            for name, flow in flows.items()
            if name != "fm"
        },
        demonstrated=curve(torch.linspace(0, LAP, 201, dtype=torch.float64)).numpy(),
        force=settings.disturbance,
        contracting=disturbed.pop("follow-contracting"),
        free=disturbed,
        settled=settle(systems["settle"]),
    )
