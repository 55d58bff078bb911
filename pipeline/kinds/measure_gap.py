"""Measure the bounds of Theorem 1 beside the real error of learned fields, on data whose field is known."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.evaluation.gap import Gap, measure_adaptive_gap, measure_gap
from pipeline.flow.coupling import make_coupling
from pipeline.flow.marginal import POINT_SETS, MarginalField
from pipeline.flow.path import AffinePath, i_cfm
from pipeline.nets.registry import build_net
from pipeline.ode.fixed_step import Field
from pipeline.ode.grids import GRIDS, time_grid
from pipeline.reporting.gap import gap_markdown, gap_panels, gap_table
from pipeline.settings.paths import ScaleReports
from pipeline.settings.schema import EVALUATIONS, GapSettings, ScaleSettings
from pipeline.training.job import Asked, Job
from pipeline.training.loop import Batches, Log, train
from pipeline.training.pretrain import FlowMatching
from pipeline.training.problem import Workspace
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.seeding import Generators


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    return Job(f"measure_gap-{asked.scale}", deps=[], outs=ScaleReports(asked.scale).pictured("gap"))


def work(asked: Asked, all_settings: ScaleSettings, here: Workspace, _label: str) -> None:
    settings = all_settings.gap
    settled = here.settled(settings)
    here.run.tag("precision", settled.train.precision)
    gaps: dict[str, list[Gap]] = {}
    for name in settings.datasets:
        for sigma in settings.sigmas:
            label = f"{name} sigma={sigma:g}"
            generators = Generators(settings.seed, "gap", name, repr(sigma))
            points, path = POINT_SETS[name](), i_cfm(sigma)

            def log(metrics: dict[str, float], step: int, prefix: str = f"{name}_{sigma:g}") -> None:
                here.run.log({f"{prefix}_{key}": value for key, value in metrics.items()}, step)

            learned = learn(points, path, settled, generators, here.resume / f"{name}-{sigma!r}.pt", log, label)
            gaps[label] = solve_all(MarginalField(points, path), learned, settings, generators, label)
    table_path, report_path, picture, _ = ScaleReports(asked.scale).pictured("gap")
    table = gap_table(asked.scale, gaps)
    write_csv(table_path, table)
    gap_panels(table, picture)
    about = settings.model_dump(include={"trajectories", "tolerance", "end", "seed"})
    write_text(report_path, gap_markdown(table, gaps, picture.name, steps=settings.train.steps, **about))
    here.run.table(table_path, "gap")
    here.run.artifact(report_path)
    here.run.artifact(picture)


def learn(
    points: Tensor,
    path: AffinePath,
    settings: GapSettings,
    generators: Generators,
    state: Path,
    log: Log,
    label: str,
) -> Field:
    """Train a net by flow matching on ``points`` (M, D), resumably in ``state``; return its field in float64."""
    torch.manual_seed(settings.seed)
    net = build_net(settings.net, horizon=1, action_dim=points.shape[1], condition_dim=1)
    data = points.float()[:, None, :]
    objective = FlowMatching(net, path, make_coupling("independent"), generators)
    average = train(
        objective,
        Batches(data.new_zeros(len(data), 1), data),
        settings.train,
        generators,
        log=log,
        state_path=state,
        title=f"gap {label}",
    )
    exact = average.cpu().double().eval()

    def field(t: float, x: Tensor) -> Tensor:
        return exact(x.new_full((len(x),), t), x[:, None, :], x.new_zeros(len(x), 1))[:, 0]

    return field


def solve_all(
    true: MarginalField, learned: Field, settings: GapSettings, generators: Generators, label: str
) -> list[Gap]:
    """Measure every solver, grid and NFE from the same noise, and the adaptive solve."""
    noise = generators["trajectories"]
    starts = torch.randn(settings.trajectories, true.points.shape[1], generator=noise, dtype=torch.float64)
    work = [(solver, kind, nfe) for solver in EVALUATIONS for kind in GRIDS for nfe in settings.nfe]
    found = [
        measure_gap(true, learned, starts, solver, kind, time_grid(kind, nfe, solver, settings.end))
        for solver, kind, nfe in tqdm(work, desc=f"gap {label}", unit="solve")
    ]
    return [*found, measure_adaptive_gap(true, learned, starts, settings.end, settings.tolerance)]
