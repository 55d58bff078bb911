"""Compare the speed of training and sampling with the machine's peak: reports/benchmarks_peak.csv and .md.

    python -m pipeline.perf.peak

The peak is that of a large matrix product in the same precision with the same threads. Operations are those of products
and convolutions, forward and backward (2 for a multiplication with its addition), counted by PyTorch's
``FlopCounterMode``. The time is that of a whole step of the training loop, or from observations to actions.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pipeline.flow.coupling import independent
from pipeline.nets.images import build_image_net
from pipeline.nets.registry import build_net
from pipeline.perf.comparison import machine, timed
from pipeline.perf.solves import NFE, policy_of
from pipeline.perf.updates import (
    ACTION_DIM,
    CONDITION_DIM,
    HORIZON,
    UNET1D,
    flow_matching,
    optimization,
    random_batch,
    step_seconds,
)
from pipeline.reporting.tables import markdown_table
from pipeline.settings import schema
from pipeline.settings.schema import NetSettings
from pipeline.training.loop import Objective
from pipeline.training.mle import Reconstruction
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.hardware import cores
from pipeline.utils.precision import Precision, native
from pipeline.utils.seeding import Generators

COLUMNS = ["work", "precision", "machine", "gflop", "ms", "gflop_per_s", "peak_gflop_per_s", "share_of_peak"]
GEMM = 2048
STEPS = 5


@dataclass(frozen=True)
class Work:
    """Work to measure: name, precision, number of operations and seconds."""

    name: str
    precision: Precision
    operations: Callable[[], int]
    seconds: Callable[[], float]


def precisions() -> tuple[Precision, ...]:
    """List the precisions to time: fp32, and bf16 if the machine has instructions for it; else bf16 takes minutes."""
    return ("fp32", "bf16") if native("cpu") == "bf16" else ("fp32",)


def gemm_peak(precision: Precision, size: int) -> float:
    """Measure the operations per second of products of two square matrices; the fastest of ten counts."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = (torch.randn(size, size).to(kind) for _ in range(2))
    a @ b
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(10))


def works(rows: int = 256, images: int = 64, episodes: int = 500) -> Iterator[Work]:
    """Yield updates of nets of lab and of the paper, and sampling with them.

    Args:
        rows, images: sizes of a batch of actions and of images. episodes: batch size of observations for lab's net.
    """
    settings = schema.load().lab
    nets: dict[str, tuple[NetSettings, int]] = {  # with the batch size of observations
        "lab's mlp for Push-T": (settings.task("pusht").net, episodes),
        "the paper's ConditionalUnet1D": (UNET1D, 64),
    }
    for name, (net_settings, at_once) in nets.items():
        torch.manual_seed(0)
        net = build_net(net_settings, HORIZON, ACTION_DIM, CONDITION_DIM)
        batch = random_batch(rows, HORIZON, ACTION_DIM, condition_dim=CONDITION_DIM)
        yield from _updates(f"FM training step, {name}, batch {rows}", flow_matching(net, Generators(0)), *batch)
        if net_settings is not UNET1D:  # its MLE update would be 16 times the step above
            mle = Reconstruction(net, independent, NFE, Generators(0))
            yield from _updates(f"MLE update, {NFE} Euler steps, {name}, batch {rows}", mle, *batch)
        for size in (1, at_once):
            yield _sampling(f"sampling, {NFE} Euler steps, {name}, {size} at once", net, size)
    unet = build_image_net(settings.image_task("cifar10").net, (3, 32, 32))
    batch = random_batch(images, 3, 32, 32, condition_dim=0)
    yield from _updates(
        f"FM training step, lab's U-Net for CIFAR-10, batch {images}", flow_matching(unet, Generators(0)), *batch
    )


def _updates(name: str, objective: Objective, condition: Tensor, data: Tensor) -> Iterator[Work]:
    for precision in precisions():
        settings = optimization(len(data)).model_copy(update={"precision": precision})
        yield Work(
            name,
            precision,
            partial(operations, lambda: objective(condition, data).backward()),
            lambda settings=settings: median(step_seconds(objective, condition, data, settings, STEPS)),  # type: ignore[misc]
        )


def _sampling(name: str, net: nn.Module, size: int) -> Work:
    generator = np.random.default_rng(size)
    observations = generator.standard_normal((size, 2, CONDITION_DIM // 2), dtype=np.float32)
    noise = generator.standard_normal((size, HORIZON, ACTION_DIM), dtype=np.float32)
    act = partial(policy_of(net).acting(NFE).act, observations, noise)
    return Work(name, "fp32", partial(operations, act), lambda: median([timed(act) for _ in range(STEPS)]))


def operations(work: Callable[[], object]) -> int:
    """Count the multiplications and additions of ``work``."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measure(works: Iterable[Work], gemm: int = GEMM) -> pd.DataFrame:
    """Measure each work, a row each; ``gemm`` is the size of the products for the peak."""
    peaks = {precision: gemm_peak(precision, gemm) for precision in precisions()}
    rows = []
    for work in tqdm(works, desc="peak", unit="work"):
        work.seconds()  # warms up
        count, seconds, most = work.operations(), work.seconds(), peaks[work.precision]
        rate = count / seconds
        rows.append(
            (work.name, work.precision, machine(), count / 1e9, 1000 * seconds, rate / 1e9, most / 1e9, rate / most)
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def write(folder: Path, table: pd.DataFrame, about: str) -> None:
    """Write ``benchmarks_peak.csv`` and ``.md``."""
    table = table.round({"gflop": 4, "ms": 3, "gflop_per_s": 1, "peak_gflop_per_s": 1, "share_of_peak": 3})
    write_csv(folder / "benchmarks_peak.csv", table)
    rows = [
        (
            *(row.work, row.precision, f"{row.gflop:.3g}", f"{row.ms:.3g} ms"),
            *(f"{row.gflop_per_s:.0f}", f"{row.peak_gflop_per_s:.0f}", f"{row.share_of_peak:.0%}"),
        )
        for row in table.itertuples()
    ]
    head = ["work", "precision", "Gflop", "time", "Gflop/s", "at most", "share"]
    write_text(folder / "benchmarks_peak.md", f"{about}\n{markdown_table(rows, head)}\n")


_ABOUT = """\
# What of the machine training and sampling use

`python -m pipeline.perf.peak`, {machine}, PyTorch {torch}; load average before the start {load:.1f}. `at most` is
what the product of two {gemm} × {gemm} matrices reaches in the same precision. Operations are those of products and
convolutions alone; the time is that of all: normalisations, activations, the optimiser and the weights' average too.
Timed in {precisions}; bf16 is left out where a machine has no instructions for it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cores(), help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    table = measure(works())
    about = {"machine": machine(), "torch": torch.__version__, "load": load, "gemm": GEMM}
    write(Path("reports"), table, _ABOUT.format(**about, precisions=" and ".join(precisions())))


if __name__ == "__main__":
    main()
