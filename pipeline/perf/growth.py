"""Measure how time and memory grow with the size of the work: reports/benchmarks_growth.csv, .md, .png and .svg.

    python -m pipeline.perf.growth

Each size is measured in a process of its own: the time of the work, and the peak of the process's memory above its
level before the work. On logarithmic axes, the slope is the power of the size with which each grows.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.evaluation.fid import FeatureStatistics, frechet_distance
from pipeline.evaluation.protocol import find_env_factory
from pipeline.evaluation.rollouts import Episode, rollout
from pipeline.evaluation.seeds import validation_seeds
from pipeline.flow.coupling import independent
from pipeline.flow.pairing import NO_MODELS, Source
from pipeline.flow.transport import minibatch_ot
from pipeline.nets.registry import build_net
from pipeline.ode.gradient import Gradient
from pipeline.perf.comparison import machine, timed
from pipeline.reporting.figures import drawing
from pipeline.reporting.tables import markdown_table
from pipeline.settings import schema
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.loader import load_task
from pipeline.training.checkpoint import load_policy
from pipeline.training.data import prepare
from pipeline.training.mle import Reconstruction
from pipeline.utils import platform
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.seeding import Generators

Work = Callable[[], object]


@dataclass(frozen=True)
class Axis:
    """One size that is varied.

    Attributes:
        about: description of the work. size: name of the size. sizes: its values.
        work: size → the work, which can be repeated.
        time, memory: the powers of the size with which the work itself grows; measured powers must not be much larger.
    """

    about: str
    size: str
    sizes: tuple[int, ...]
    work: Callable[[int], Work]
    time: float
    memory: float


def _reconstruction(gradient: Gradient, batch: int, nfe: int) -> Work:
    settings = schema.load().lab.task("pusht")
    task, data = load_task("pusht"), settings.data
    condition_dim = data.n_obs_steps * task.observations[data.observation].dim
    net = build_net(settings.net, data.horizon, task.action_dim, condition_dim)
    objective = Reconstruction(net, independent, nfe, Generators(0), gradient=gradient)
    condition, actions = torch.randn(batch, condition_dim), torch.randn(batch, data.horizon, task.action_dim)
    return lambda: objective(condition, actions).backward()


def _sampling(n_action_steps: int) -> Work:
    settings = schema.load().lab.task("pusht").net
    net = build_net(settings, n_action_steps, 2, 20)
    t, x, condition = torch.rand(64), torch.randn(64, n_action_steps, 2), torch.randn(64, 20)

    def sample() -> None:
        with torch.inference_mode():
            for _ in range(16):
                net(t, x, condition)

    return sample


def _rollouts(episodes: int, workers: int) -> Work:
    policy = load_policy(Path("data/checkpoints/lab/pusht/fm-nfe1.safetensors"))[0].acting(1)
    env_factory = find_env_factory(load_task("pusht"), "pusht", "pusht_b")
    asked = [Episode(seed, 0) for seed in validation_seeds(episodes)]
    return lambda: rollout(policy, env_factory, asked, workers=workers, progress=False)


def _demonstrations(times: int) -> Work:
    task = load_task("pusht")
    one = task.datasets["pusht_starter"].read(Path("data/demonstrations/pusht_starter.npz"))
    ends = np.concatenate([one.episode_ends + k * len(one.state) for k in range(times)])
    many = Demonstrations(np.tile(one.state, (times, 1)), np.tile(one.action, (times, 1)), ends)
    settings = schema.load().starter.task("pusht").data
    return lambda: prepare(many, settings, task.observations[settings.observation].encode, 0)


def _features(samples: int) -> Work:
    generator = torch.Generator().manual_seed(0)
    reference = _statistics(1000, generator)
    return lambda: frechet_distance(_statistics(samples, generator), reference)


def _statistics(samples: int, generator: torch.Generator) -> FeatureStatistics:
    statistics = FeatureStatistics(256)
    for _ in range(samples // 500):
        statistics.update(torch.randn(500, 256, generator=generator))
    return statistics


def _ot(size: int) -> Work:
    data = torch.randn(size, 16, 2)
    source = Source(torch.Generator().manual_seed(0))
    return lambda: minibatch_ot(data, torch.zeros(size, 1), source, NO_MODELS)


AXES: Mapping[str, Axis] = {
    "mle-batch": Axis(
        "MLE update, 8 Euler steps", "batch", (32, 64, 128, 256, 512), partial(_reconstruction, "direct", nfe=8), 1, 1
    ),
    "mle-nfe": Axis(
        "MLE update, batch 128", "NFE", (1, 2, 4, 8, 16, 32), partial(_reconstruction, "direct", 128), 1, 1
    ),
    "mle-nfe-checkpointed": Axis(
        "MLE update, checkpointed, batch 128",
        "NFE",
        (1, 2, 4, 8, 16, 32),
        partial(_reconstruction, "checkpointed", 128),
        1,
        0,
    ),
    "chunk": Axis("sampling, 16 Euler steps, batch 64", "actions in a chunk", (8, 16, 32, 64, 128), _sampling, 1, 1),
    "episodes": Axis("Push-T rollout, NFE 1", "episodes", (16, 32, 64, 128), partial(_rollouts, workers=0), 1, 1),
    "workers": Axis("Push-T rollout, NFE 1, 64 episodes", "simulation processes", (1, 2), partial(_rollouts, 64), 0, 1),
    "demonstrations": Axis(
        "Push-T demonstrations to windows", "times the starter's 200", (1, 10, 100), _demonstrations, 1, 1
    ),
    "fid-samples": Axis("Fréchet distance, 256 features", "samples", (2000, 8000, 32_000, 128_000), _features, 1, 0),
    "minibatch-ot": Axis("minibatch OT", "batch", (128, 256, 512, 1024, 2048), _ot, 3, 2),
}
"""Name → axis to measure. Assignment needs cubic time and a quadratic cost matrix; all else is linear or constant."""

REPEATS = 3

TIDY = {"MALLOC_TRIM_THRESHOLD_": "0"}
"""Makes the C library return freed memory at once. Otherwise it keeps holes too small for the next step's tensors; they
count as used memory, and grow with the number of steps."""


def measure(names: Sequence[str] = tuple(AXES)) -> pd.DataFrame:
    """Measure every size of each axis; a row each: ``ms`` of the work and ``peak_mb``, peak memory above the start."""
    rows = []
    points = [(name, size) for name in names for size in AXES[name].sizes]
    for name, size in tqdm(points, desc="growth", unit="size"):
        # one process for each size: memory left by a larger size would hide the peak of a smaller one
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            seconds, peak = alone.submit(measure_size, name, size, torch.get_num_threads()).result()
        axis = AXES[name]
        rows.append((name, axis.about, axis.size, size, machine(), 1000 * seconds, peak / 2**20))
    return pd.DataFrame(rows, columns=["name", "work", "size_of", "size", "machine", "ms", "peak_mb"])


def measure_size(name: str, size: int, threads: int) -> tuple[float, int]:
    """Measure one size: median seconds of the work, and peak memory above the start in bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = AXES[name].work(size)
    platform.forget_peak_memory()  # resets the peak to the current memory
    before = platform.peak_memory()  # not the resident size, which is counted differently and may be larger
    first = timed(work)
    peak = platform.peak_memory() - before
    return median([timed(work) for _ in range(REPEATS)]) if first < 10 else first, peak


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Fit the powers of the size with which time and memory grow, by axis; memory below 1 MB counts as 1 MB."""
    rows = []
    for name, points in table.groupby("name", sort=False):
        axis, size = AXES[str(name)], np.log(points["size"].to_numpy(dtype=float))
        time = np.polyfit(size, np.log(points["ms"]), 1)[0]
        memory = np.polyfit(size, np.log(points["peak_mb"].clip(lower=1)), 1)[0]
        rows.append((name, axis.about, axis.size, time, axis.time, memory, axis.memory))
    columns = ["name", "work", "size_of", "time_slope", "time_must", "memory_slope", "memory_must"]
    return pd.DataFrame(rows, columns=columns)


def write(folder: Path, table: pd.DataFrame, about: str) -> None:
    """Write ``benchmarks_growth.csv`` (the sizes), ``.md`` (the slopes), ``.png`` and ``.svg``."""
    table = table.round({"ms": 2, "peak_mb": 1})
    write_csv(folder / "benchmarks_growth.csv", table)
    rows = []
    for row in slopes(table).itertuples():
        sizes = table[table["name"] == row.name]["size"]
        powers = (f"{row.time_slope:.2f}", f"{row.time_must:g}", f"{row.memory_slope:.2f}", f"{row.memory_must:g}")
        rows.append((row.work, row.size_of, f"{sizes.min()} to {sizes.max()}", *powers))
    head = ["work", "with", "sizes", "time grows as", "must", "memory grows as", "must"]
    write_text(folder / "benchmarks_growth.md", f"{about}\n{markdown_table(rows, head)}\n")
    draw(table, folder / "benchmarks_growth")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw a panel for each axis, log time and peak memory against log size, to ``path`` with ``.png`` and ``.svg``."""
    names = table["name"].unique()
    with drawing(path, 10, 2.9 * -(-len(names) // 3), legend=False) as figure:
        panels = figure.subplots(-(-len(names) // 3), 3, squeeze=False).flat
        for panel, name in zip(panels, names, strict=False):
            points = table[table["name"] == name]
            panel.loglog(points["size"], points["ms"], "o-", color="#0072B2", label="time, ms")
            panel.loglog(points["size"], points["peak_mb"].clip(lower=1), "s--", color="#D55E00", label="memory, MB")
            panel.set_title(AXES[name].about)
            panel.set_xlabel(AXES[name].size)
        for panel in panels:
            panel.set_axis_off()
        figure.axes[0].legend()


_ABOUT = """\
# How time and memory grow

`python -m pipeline.perf.growth`, {machine}, PyTorch {torch}; load average of the machine before the
start {load:.1f}. Each size in a process of its own; memory is its peak above what it held before the work, where the C
library gives freed memory back at once ({tidy}; else it keeps some, and a solve of many steps seems to need
more). A slope is the power of the size, fitted over all sizes; `must` is that of the work itself. Where a constant cost
dominates small sizes it is smaller.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    os.environ.update(TIDY)  # processes read it when they start
    table = measure()
    tidy = " ".join(f"`{name}={value}`" for name, value in TIDY.items())
    about = _ABOUT.format(machine=machine(), torch=torch.__version__, load=load, tidy=tidy)
    write(Path("reports"), table, about)


if __name__ == "__main__":
    main()
