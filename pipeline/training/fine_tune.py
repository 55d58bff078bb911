"""Maximum-likelihood fine-tuning of a flow-matching model of one's own, in one call."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.objective import reconstruct
from pipeline.flow.pairing import Coupling
from pipeline.flow.path import i_cfm
from pipeline.nets.lora import add_lora, merge_lora
from pipeline.nets.modes import evaluating
from pipeline.ode.fixed_step import uniform_grid
from pipeline.ode.gradient import Gradient
from pipeline.settings.schema import Solver
from pipeline.training.collapse_stopping import CollapseStopping
from pipeline.training.diversity_monitor import DiversityMonitor, DiversityReading
from pipeline.training.fields import FieldSampler, HeldOutRows, Velocity, check_field
from pipeline.training.finetuning import Training, run
from pipeline.training.loop import Batches, BatchSource, Log, evenly_spaced, make_accelerator
from pipeline.training.mle import Reconstruction
from pipeline.training.options import SOLVERS, Options, check_choice
from pipeline.training.resume import claim, fingerprint, healthy, kept_precision, release
from pipeline.training.sources import Data, as_rows, as_source
from pipeline.utils.precision import Precision, PrecisionSetting, autocast, begun_with, native
from pipeline.utils.seeding import Generators


@dataclass(frozen=True)
class FineTuned:
    """What ``fine_tune`` returns.

    Attributes:
        net: the field with the moving average of the trained weights, in evaluation mode, where the given field was.
        steps: updates that led to it; fewer than asked for where the samples collapsed.
        history: readings of the diversity monitor by step, step 0 being the given field; empty without held-out data.
        precision: of the products in training; fp32 stands for the weights' own too.
    """

    net: nn.Module
    steps: int
    history: Mapping[int, DiversityReading]
    precision: Precision


def fine_tune(
    field: nn.Module,
    data: Data,
    *,
    nfe: int,
    coupling: str | Coupling = "nearest",
    candidates: int = 8,
    teacher_nfe: int = 32,
    teacher_temperature: float = 1.0,
    solver: Solver = "euler",
    gradient: Gradient = "direct",
    last_steps: int | None = None,
    covariance: str = "identity",
    fm_weight: float = 0.0,
    energy_weight: float = 0.0,
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    steps: int = 1000,
    batch_size: int = 256,
    lr: float = 1e-4,
    ema_decay: float = 0.99,
    precision: PrecisionSetting = "auto",
    held_out: Tensor | tuple[Tensor, Tensor] | None = None,
    readings: int = 4,
    collapse_below: float = 0.2,
    on_collapse: Literal["stop", "warn"] = "stop",
    seed: int = 0,
    state_path: Path | str | None = None,
    log: Log = lambda _metrics, _step: None,
) -> FineTuned:
    """Fine-tune ``field`` by maximum likelihood through the ``nfe`` evaluations that inference is to spend.

    The loss is (6) of arXiv 2510.02081, on noise and data paired by ``coupling``. What is trained is a copy: ``field``
    stays as it is. It is trained in evaluation mode, since inference runs without dropout too, on the GPU where there
    is one, and its frozen parameters stay frozen.

    Args:
        field: a trained velocity field, called as field(t (B,), x (B, …), condition (B, …)) → velocity, shaped as x,
            with standard normal noise at t = 0 and data at t = 1; condition is None where ``data`` has none. A model w
            whose time runs the other way is v(t, x, c) = −w(1 − t, x, c).
        data: x1, or pairs (x1, condition), scaled as the field was trained: a tensor, a tuple of two or a
            ``TensorDataset``, drawn from with replacement; or an iterable of batches such as a ``DataLoader``, which
            is iterated again when it ends.
        nfe: number of function evaluations at inference.
        coupling: nearest (samples stay diverse), reflow (of the data only the shape is used), independent (modes
            collapse), or another of ``pipeline.flow.coupling``; or a function as described there.
        candidates: K of ``nearest``: noises tried for each datum.
        teacher_nfe: evaluations of the given field's solve that ``reflow`` and ``inversion`` learn from.
        teacher_temperature: factor of the noise that ``reflow``'s solve starts from. Below 1 the samples that are
            learned vary less and are likelier.
        solver: the solver of inference: euler, midpoint, heun or rk4 (1, 2, 2, 4 evaluations a step).
        gradient: direct; checkpointed (the same in less memory); adjoint (inexact, to compare).
        last_steps: steps of the solve, from its end, that the gradient goes through; None: all.
        covariance: of the residual: identity, which is loss (6); fixed, learned or profiled diagonal ones.
        fm_weight: of a flow-matching loss on the straight path that is added and keeps the field near a flow.
        energy_weight: of the kinetic energy of the solved paths that is added and keeps them straight.
        lora_rank: 0: all weights are trained; above: additions of that rank to linear and convolution weights (LoRA),
            scaled by ``lora_alpha`` / ``lora_rank`` and merged at the end.
        steps: optimiser steps (AdamW, gradient norm at most 1, cosine schedule after up to 50 steps of warm-up).
        batch_size: rows a step; of an iterable, the batches are its own.
        lr: peak learning rate.
        ema_decay: of the moving average of the weights that is returned; 0: the last weights.
        precision: of the products in training: bf16 (autocast), fp32 (the weights' own), or auto: bf16 where the device
            has instructions for it and the weights are float32, else fp32. A resumed run keeps what it began with;
            readings are always in the weights' own.
        held_out: data that is not trained on, at most 256 rows of it used to monitor the diversity of samples; each
            reading costs 16 samples a row. None: nothing is monitored.
        readings: how many readings to take, evenly spaced, besides that of step 0.
        collapse_below: the samples are collapsing when their spread falls below this share of that of the field at 16
            evaluations, and below what the field has at ``nfe``: a ``RuntimeWarning`` says so.
        on_collapse: stop: training ends there, and the weights of the last healthy reading are returned; warn: it goes
            on.
        seed: of all random numbers, but for those of an iterable.
        state_path: the file from which an interrupted run, called again with the same arguments, goes on; removed at
            the end. With data in memory it ends in the same bits as if nothing had happened; an iterable starts from
            its beginning again. ``history`` then lacks the readings before the interruption, save that of step 0.
        log: called as log(metrics, step) every 50 steps.

    Returns:
        The fine-tuned field, and readings of the diversity monitor.

    Raises:
        ValueError: one line that names the argument, what was given and what is allowed.
        FloatingPointError: training diverged.
    """
    given = locals()  # the arguments
    options = Options(**{name: given[name] for name in Options.names()})
    if not any(parameter.requires_grad for parameter in field.parameters()):
        raise ValueError("field: none of its parameters requires a gradient, allowed: at least one")
    home = next(field.parameters())
    source, sample_rows = as_source(data, home.dtype)
    velocity = Velocity(deepcopy(field).eval()).to(make_accelerator().device)
    path = Path(state_path) if state_path is not None else None
    trained_in = _begin(velocity, options, sample_rows, path)
    stopping = _collapse_stopping(velocity, held_out, options, path) if held_out is not None else None
    history = {0: stopping.reading} if stopping else {}

    def note(step: int, _net: nn.Module) -> None:
        assert stopping
        history[step] = stopping.reading

    trained = run(
        _training(velocity, options, source, sample_rows, trained_in),
        log=log,
        state_path=path,
        title="fine-tune",
        stopping=stopping,
        measured_after=stopping.steps if stopping else (),
        measure=note,
    )
    merge_lora(trained.net)
    if path is not None:
        release(path)
    tuned = cast(Velocity, trained.net).field.to(home.device).eval()
    return FineTuned(tuned, trained.steps, history, trained_in)


def _begin(velocity: Velocity, options: Options, rows: Batches, path: Path | None) -> Precision:
    """Try the field on ``rows`` and claim the resumable state; the precision that the run has, or began with."""
    home = next(velocity.parameters())
    auto = native(home.device.type) if home.dtype == torch.float32 else "fp32"
    wanted = options.optimization
    with autocast(home.device.type, wanted.with_auto(auto).precision):
        check_field(velocity, rows, options.coupling)
    if path is not None:
        claim(path, fingerprint(velocity, options.identity))
        auto = begun_with(kept_precision(path), auto)
    return cast(Precision, wanted.with_auto(auto).precision)


def _training(
    velocity: Velocity, options: Options, source: BatchSource, rows: Batches, precision: Precision
) -> Training:
    """What ``options`` ask for, in ``precision``; ``rows`` have the data's shape."""
    generators = Generators(options.seed, "fine_tune")
    objective = Reconstruction(
        velocity,
        options.pairing,
        options.nfe,
        generators,
        teacher_nfe=options.teacher_nfe if options.has_teacher else None,
        teacher_temperature=options.teacher_temperature,
        solver=options.solver,
        gradient=options.gradient,
        last_steps=options.last_steps,
        covariance=COVARIANCES[options.covariance](rows.data.shape[1:]),
        fm_weight=options.fm_weight,
        path=i_cfm(0.0),
        energy_weight=options.energy_weight,
    )
    if options.lora_rank > 0:  # after the teacher was copied, which has no use for it
        add_lora(velocity, options.lora_rank, options.lora_alpha, generators["lora"])
    return Training(objective, source, generators, options.optimization.with_auto(precision))


def _collapse_stopping(
    velocity: Velocity, held_out: Tensor | tuple[Tensor, Tensor], options: Options, path: Path | None
) -> CollapseStopping:
    """Build the collapse stopping of samples at ``options.nfe`` evaluations, held against ``velocity`` as it is now."""
    rows = as_rows(held_out, next(velocity.parameters()).dtype, "held_out")
    check_field(velocity, rows, None, "held_out")
    monitor = DiversityMonitor(
        FieldSampler(velocity, options.solver), HeldOutRows(rows.condition, rows.data), options.seed
    )

    def measure(net: nn.Module) -> DiversityReading:
        return monitor.measure(FieldSampler(net, options.solver), options.nfe)

    return CollapseStopping(
        measure,
        measure(velocity),
        options.steps,
        collapse_below=options.collapse_below,
        stop=options.on_collapse == "stop",
        warn=_warn,
        keep=healthy(path) if path is not None else None,
        steps=[0, *evenly_spaced(options.steps, options.readings)],
    )


@torch.no_grad()
def sample(
    field: nn.Module,
    noise: Tensor,
    condition: Tensor | None = None,
    *,
    nfe: int,
    solver: Solver = "euler",
    temperature: float = 1.0,
) -> Tensor:
    """Samples by ``nfe`` evaluations of ``field`` in evaluation mode, called as in ``fine_tune``.

    Args:
        noise: x0 (B, …), standard normal. condition: (B, …) or None.
        temperature: factor of the noise; below 1 samples vary less and are likelier.

    Returns:
        x1, shaped as the noise.

    Raises:
        ValueError: the solver is none of those, or does not spend exactly ``nfe``.
    """
    check_choice("solver", solver, SOLVERS)
    condition = noise.new_empty(len(noise), 0) if condition is None else condition
    with evaluating(field):
        return reconstruct(Velocity(field), temperature * noise, condition, uniform_grid(nfe, solver), solver)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
