"""Measure the cost of gradients through the solve: time of an MLE update against flow-matching updates, and memory.

    python -m pipeline.perf.gradients

times the net of a scale (lab by default) on random data of its shapes, and writes reports/benchmarks_gradients.csv and
.md. All variants run in one process and take turns, so that other work on the machine affects them alike. A turn is NFE
flow-matching updates, then one MLE update of each kind at that NFE; their ratios are formed. The report gives median
and quartiles over the turns.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.flow.coupling import independent, make_coupling
from pipeline.flow.path import PATHS
from pipeline.nets.ema import averaged
from pipeline.ode.gradient import Gradient
from pipeline.reporting.tables import markdown_table
from pipeline.settings import schema
from pipeline.settings.schema import FinetuneRecipe, Optimization, TaskSettings
from pipeline.tasks.loader import load_task
from pipeline.training.checkpoint import CheckpointMetadata, build_policy
from pipeline.training.loop import Objective
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.atomic import write_text
from pipeline.utils.hardware import cores
from pipeline.utils.precision import autocast, native
from pipeline.utils.seeding import Generators

TASK = "pusht"
NFES = (1, 8, 16)
REFLOW_NFE = 32  # function evaluations of the base model's solve
AIMS: dict[tuple[str, Gradient], float | None] = {
    ("given", "direct"): 1.1,
    ("given", "checkpointed"): 1.45,
    ("nearest", "direct"): None,
    ("reflow", "direct"): None,
}
"""(pairs, gradient) to measure → target for the ratio of one MLE update to NFE flow-matching updates: at most this.
``given`` pairs cost nothing; the other pairs are of couplings that solve in every step."""


@dataclass
class SavedBytes:
    """Bytes that autograd keeps for the backward pass; each storage counts once."""

    ignored: frozenset[int]
    storages: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.storages.values())

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.ignored:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def saved_bytes(ignored: Sequence[Tensor]) -> Iterator[SavedBytes]:
    """Count the bytes that autograd saves inside the block, without the tensors ``ignored``, such as the weights.

    The graph must be alive when the block ends, since freed addresses are reused. The activations that a checkpointed
    step saves during its recomputation are not counted: they are those of one step and are freed with it.
    """
    saved = SavedBytes(frozenset(tensor.untyped_storage().data_ptr() for tensor in ignored))
    with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
        yield saved


class Update:
    """One way to update a net of ``settings``, from the batch to the moving average, as in the training loop.

    Args:
        make_objective: net, generators → the objective to minimise.
        recipe: gives learning rate, clipping, precision and averaging.
    """

    def __init__(
        self,
        settings: TaskSettings,
        recipe: Optimization,
        make_objective: Callable[[nn.Module, Generators], Objective],
    ) -> None:
        metadata = CheckpointMetadata(
            scale="",
            task=TASK,
            method="ft_fm",
            nfe=0,
            train_steps=0,
            train_seed=settings.seed,
            data=settings.data,
            net=settings.net,
            metrics={},
        )
        net = build_policy(metadata).net
        self.objective = make_objective(net, Generators(settings.seed))
        self.parameters = list(net.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.lr, fused=True)
        self.average = averaged(net, recipe.ema_decay)
        self.clip = recipe.max_grad_norm
        self.precision = recipe.precision

    def loss(self, condition: Tensor, data: Tensor) -> Tensor:
        with autocast("cpu", self.precision):
            return self.objective(condition, data)

    def seconds(self, condition: Tensor, data: Tensor) -> tuple[float, float]:
        """Make one update; return its time in seconds, and that of its loss and gradient alone."""
        start = perf_counter()
        self.loss(condition, data).backward()
        differentiated = perf_counter()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.objective.net)
        return perf_counter() - start, differentiated - start

    def saved(self, condition: Tensor, data: Tensor) -> int:
        """Count the bytes kept for the backward pass, without the weights."""
        with saved_bytes(self.parameters) as saved:
            loss = self.loss(condition, data)
        del loss
        return saved.total


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        pairs, gradient: a key of ``AIMS``.
        update_ratio: time of an MLE update over that of NFE flow-matching updates: median, and quartiles, over turns.
        gradient_ratio: the same for loss and gradient alone. The optimiser's work is left out: an MLE update does it
            once, NFE flow-matching updates NFE times.
        update_ms: median time of the MLE update.
        saved_bytes: bytes kept for the backward pass: activations, states and reduced-precision copies of weights.
    """

    pairs: str
    gradient: Gradient
    nfe: int
    update_ratio: float
    update_ratio_low: float
    update_ratio_high: float
    gradient_ratio: float
    update_ms: float
    saved_bytes: int


def measure(settings: TaskSettings, *, batch_size: int, turns: int, nfes: Sequence[int] = NFES) -> list[Row]:
    """Time every gradient at every NFE against flow matching, in ``turns`` turns."""
    recipe = recipe_of(settings)
    path = PATHS[settings.pretrain.path](settings.pretrain.sigma)

    def matching(net: nn.Module, generators: Generators) -> Objective:
        return FlowMatching(net, path, independent, generators)

    def reconstructing(nfe: int, pairs: str, gradient: Gradient) -> Callable[[nn.Module, Generators], Objective]:
        coupling = independent if pairs == "given" else make_coupling(pairs, recipe.candidates)
        teacher_nfe = REFLOW_NFE if pairs == "reflow" else None
        return lambda net, generators: Reconstruction(
            net, coupling, nfe, generators, gradient=gradient, teacher_nfe=teacher_nfe
        )

    baseline = Update(settings, recipe, matching)
    updates = {(*kind, nfe): Update(settings, recipe, reconstructing(nfe, *kind)) for kind in AIMS for nfe in nfes}
    batch = _random_batch(settings, batch_size)
    for update in (baseline, *updates.values()):
        update.seconds(*batch)  # allocators and kernels warm up

    times: dict[tuple[str, Gradient, int], list[tuple[float, float]]] = {key: [] for key in updates}
    base_times: dict[int, list[NDArray[np.float64]]] = {nfe: [] for nfe in nfes}
    for _ in range(turns):
        for nfe in nfes:
            base_times[nfe].append(np.sum([baseline.seconds(*batch) for _ in range(nfe)], axis=0))
            for kind in AIMS:
                times[*kind, nfe].append(updates[*kind, nfe].seconds(*batch))
    rows = []
    for (pairs, gradient, nfe), taken in times.items():
        ratios = np.array(taken) / np.array(base_times[nfe])  # (turns, 2): whole update, gradient alone
        low, middle, high = np.quantile(ratios[:, 0], [0.25, 0.5, 0.75]).tolist()
        gradient_ratio, update_s = float(np.median(ratios[:, 1])), float(np.median([whole for whole, _ in taken]))
        saved = updates[pairs, gradient, nfe].saved(*batch)
        rows.append(Row(pairs, gradient, nfe, middle, low, high, gradient_ratio, 1000 * update_s, saved))
    return rows


def recipe_of(settings: TaskSettings) -> FinetuneRecipe:
    """Return the task's first fine-tuning recipe, in the training precision of this machine."""
    return next(iter(settings.finetune.values())).with_auto(native("cpu"))


def _random_batch(settings: TaskSettings, size: int) -> tuple[Tensor, Tensor]:
    """Draw condition (size, C) and data (size, Tp, A)."""
    generator, task, data = torch.Generator().manual_seed(settings.seed), load_task(TASK), settings.data
    condition_dim = data.n_obs_steps * task.observations[data.observation].dim
    condition = torch.randn(size, condition_dim, generator=generator)
    return condition, torch.randn(size, data.horizon, task.action_dim, generator=generator)


def write(folder: Path, rows: Sequence[Row], about: str) -> None:
    """Write the rows to ``benchmarks_gradients.csv`` and, with ``about`` above them, to ``.md``."""
    names = [*Row.__dataclass_fields__, "aim"]
    cells = [[_cell(getattr(row, name, AIMS[row.pairs, row.gradient])) for name in names] for row in rows]
    lines = [",".join(line) for line in (names, *cells)]
    write_text(folder / "benchmarks_gradients.csv", "\n".join(lines) + "\n")
    write_text(folder / "benchmarks_gradients.md", f"{about}\n{markdown_table(cells, names)}\n")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


_ABOUT = """\
# What gradients through the solve cost

`python -m pipeline.perf.gradients`: one MLE update (loss (6), Euler) against NFE flow-matching updates of the
{scale} Push-T net, in {precision} (`precision: auto` is bf16 only where a machine has instructions for it). Batch
{batch_size} of random data of its shapes, {turns} turns, PyTorch
{torch}, {threads} CPU thread(s). Load average of the machine ({cpus} CPUs) before the start: {load:.1f}{noise}.

- `pairs`: `given` cost nothing; `nearest` searches among {candidates} candidates and `reflow` solves in {reflow_nfe}
  evaluations, both in every step. Solved ahead, `reflow` costs what given pairs do.
- `update_ratio`, with its quartiles: a whole MLE update over NFE whole flow-matching updates; `aim`: at most this.
- `gradient_ratio`: loss and gradient alone. The optimiser, the clipping and the moving average work once in an MLE
  update and NFE times in NFE flow-matching updates, which flatters `update_ratio`; this one is not flattered.
- `saved_bytes`: what autograd keeps from forward to backward, without the weights themselves. With each step it grows
  by all activations for `direct`, by one state ({state} bytes) for `checkpointed`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="lab")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--turns", type=int, default=30)
    arguments = parser.parse_args()
    settings = schema.load().block(arguments.scale).task(TASK)
    torch.set_num_threads(settings.threads)
    recipe = recipe_of(settings)
    load, cpus = os.getloadavg()[0], cores()
    rows = measure(settings, batch_size=arguments.batch_size, turns=arguments.turns)
    about = _ABOUT.format(
        scale=arguments.scale,
        batch_size=arguments.batch_size,
        precision=recipe.precision,
        candidates=recipe.candidates,
        reflow_nfe=REFLOW_NFE,
        turns=arguments.turns,
        torch=torch.__version__,
        threads=settings.threads,
        cpus=cpus,
        load=load,
        noise=", so other work ran beside it, and times are longer than alone" if load > cpus / 2 else "",
        state=_random_batch(settings, arguments.batch_size)[1].nbytes,
    )
    write(Path("reports"), rows, about)


if __name__ == "__main__":
    main()
