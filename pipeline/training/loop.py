"""Training loop of all objectives; a resumed run ends with bitwise the same weights."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from pipeline.nets.ema import averaged
from pipeline.settings.schema import Optimization
from pipeline.utils.atomic import replacing
from pipeline.utils.precision import autocast
from pipeline.utils.seeding import Generators

Log = Callable[[dict[str, float], int], None]
"""(metrics, step) → None."""

LOG_EVERY = 50
SAVE_EVERY_S = 20.0
BESIDE_LR = 30.0
"""Learning rate of the parameters beside the net, over the net's. An Adam step moves a number by about the learning
rate; log-variances have to move by whole units, which the rates of fine-tuning do not allow."""


class Objective(nn.Module):
    """Net and its training loss. A call computes the whole loss, so that DDP sees a solve as one forward.

    Attributes:
        metrics: scalars of the last call beside the loss, by name; logged with it.
    """

    net: nn.Module
    metrics: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def beside(self) -> nn.Module:
        """Return the module of further state, such as a covariance; it is saved for a resume, but not averaged."""
        return nn.Module()

    def begin(self, batches: "BatchSource", size: int) -> None:
        """Prepare on the device of training, such as by measuring batches of ``size``; called once before training."""

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        raise NotImplementedError


class BatchSource(Protocol):
    """Source of training batches."""

    def to(self, device: torch.device) -> "BatchSource":
        """Return a source of the same batches on ``device``."""

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the next condition (B, C) and data (B, …). A source that cannot choose B or the order ignores ``size``
        and ``generator``."""


@dataclass(frozen=True)
class Batches:
    """Random training batches, drawn with replacement from ``condition`` (W, C) and ``data`` (W, …) in memory."""

    condition: Tensor
    data: Tensor

    def to(self, device: torch.device) -> Self:
        """Return these batches on ``device``."""
        return replace(self, condition=self.condition.to(device), data=self.data.to(device))

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``size`` random rows."""
        rows = torch.randint(len(self.data), (size,), generator=generator).to(self.data.device)
        return self.condition[rows], self.data[rows]


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate: linear over ``warmup`` steps, then a cosine to zero at ``steps``."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def evenly_spaced(steps: int, count: int) -> list[int]:
    """Return ``count`` steps, spread evenly over 1 … ``steps`` with the last one included."""
    return sorted({round(steps * (i + 1) / count) for i in range(count)} - {0})


def make_accelerator() -> Accelerator:
    """Return the accelerator of this process; the number of CPU threads stays as it was set."""
    threads = torch.get_num_threads()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.set_num_threads(threads)  # Accelerator changes it in several processes without OMP_NUM_THREADS
    return accelerator


def train(
    objective: Objective,
    batches: BatchSource,
    optimization: Optimization,
    generators: Generators,
    *,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int, nn.Module], bool] = lambda _step, _net: True,
    log: Log = lambda _metrics, _step: None,
    state_path: Path | None = None,
    title: str = "train",
) -> nn.Module:
    """Minimise ``objective``; return the exponential moving average of its net.

    A killed run, started again with the same arguments, ends with bitwise the same weights: ``state_path`` has all that
    the next step depends on. This holds for batches that draw from the generators alone, such as ``Batches``.

    Args:
        optimization: its precision is fp32 or bf16; the caller replaces ``auto``, by the same after a resume.
        generators: the random streams; the objective draws from the same ones.
        milestones: steps after which ``on_milestone(step, averaged_net)`` is called; 0: before the first. A resume may
            repeat a call. If it returns False, training ends.
        log: called every ``LOG_EVERY`` steps with the mean loss since, the gradient norm, the learning rate and
            the objective's metrics. Only the main process calls it and ``on_milestone``.
        state_path: the file of the resumable state; None: none is kept.
    """
    accelerator = make_accelerator()
    generators.split(accelerator.process_index)
    objective.to(accelerator.device)
    batches = batches.to(accelerator.device)
    average = averaged(objective.net, optimization.ema_decay)
    batch_size = max(1, optimization.batch_size // accelerator.num_processes)
    objective.begin(batches, batch_size)
    optimizer = torch.optim.AdamW(
        _parameter_groups(objective, optimization.lr), weight_decay=optimization.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, optimization.warmup, optimization.steps)
    )
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    state = _State(objective.net, objective.beside, average, optimizer, schedule, generators, state_path, accelerator)
    step = state.load()

    losses: list[Tensor] = []
    with tqdm(
        total=optimization.steps,
        initial=step,
        desc=f"{title}, {optimization.precision}",
        unit="step",
        disable=not accelerator.is_main_process,
    ) as bar:
        if step == 0 and 0 in milestones and not _ask_main(accelerator, on_milestone, 0, average.module):
            return average.module
        while step < optimization.steps:
            condition, data = batches.draw(batch_size, generators["batches"])
            # Accelerator's mixed_precision cannot change within a process
            with autocast(accelerator.device.type, optimization.precision):
                loss = prepared(condition, data)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(objective.net.parameters(), optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update_parameters(objective.net)
            step += 1
            losses.append(loss.detach())
            bar.update()

            if step % LOG_EVERY == 0 or step == optimization.steps:
                metrics = {
                    "loss": accelerator.reduce(torch.stack(losses).mean(), "mean").item(),
                    "gradient_norm": float(norm),
                    "lr": float(schedule.get_last_lr()[0]),
                }
                metrics |= {name: value.item() for name, value in objective.metrics.items()}
                _check_finite(metrics["loss"], step)
                bar.set_postfix(loss=f"{metrics['loss']:.4f}")
                if accelerator.is_main_process:
                    log(metrics, step)
                losses.clear()
            if step in milestones and not _ask_main(accelerator, on_milestone, step, average.module):
                break
            if step % LOG_EVERY == 0:
                state.save_if_due(step)
    return average.module


def _parameter_groups(objective: Objective, lr: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: the trainable weights of the net, and the parameters beside it."""
    groups: list[dict[str, Any]] = [{"params": [p for p in objective.net.parameters() if p.requires_grad], "lr": lr}]
    if beside := list(objective.beside.parameters()):
        groups.append({"params": beside, "lr": BESIDE_LR * lr, "weight_decay": 0.0})
    return groups


def _ask_main(
    accelerator: Accelerator, on_milestone: Callable[[int, nn.Module], bool], step: int, net: nn.Module
) -> bool:
    """Call ``on_milestone`` in the main process; the others wait for its answer."""
    going_on = on_milestone(step, net) if accelerator.is_main_process else True
    return bool(broadcast(torch.tensor([going_on], device=accelerator.device)).item())


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"training diverged: the loss at step {step} is {loss}; lower lr or clip")


@dataclass
class _State:
    """Resumable state of a run in one file, with the generators of every process."""

    net: nn.Module
    beside: nn.Module
    average: AveragedModel
    optimizer: Any
    schedule: Any
    generators: Generators
    path: Path | None
    accelerator: Accelerator
    saved_at: float = field(default_factory=time.monotonic)

    def save_if_due(self, step: int) -> None:
        if self.path is None:
            return
        due = torch.tensor([time.monotonic() - self.saved_at > SAVE_EVERY_S], device=self.accelerator.device)
        if not broadcast(due).item():  # the main process decides, since the clocks differ
            return
        generators = gather_object([self.generators.state_dict()])
        if self.accelerator.is_main_process:
            content = {
                "step": step,
                "net": self.net.state_dict(),
                "beside": self.beside.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "generators": generators,
            }
            with replacing(self.path) as temporary:
                torch.save(content, temporary)
        self.saved_at = time.monotonic()

    def load(self) -> int:
        """Load the state; return its step, or 0 without a state or with one of another number of processes."""
        if self.path is None or not self.path.exists():
            return 0
        content = torch.load(self.path, weights_only=True, map_location="cpu")
        if len(content["generators"]) != self.accelerator.num_processes:
            return 0
        self.net.load_state_dict(content["net"])
        self.beside.load_state_dict(content["beside"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.generators.load_state_dict(content["generators"][self.accelerator.process_index])
        return content["step"]
