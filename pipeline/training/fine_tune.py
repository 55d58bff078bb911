"""Fine-tune a user's flow-matching model by maximum likelihood, in one call."""

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
    """Result of ``fine_tune``.

    Attributes:
        net: the field with averaged weights, in evaluation mode, on the device of the given field.
        steps: updates that led to it; fewer than requested if the samples collapsed.
        history: readings of the diversity monitor by step; step 0 is the given field; empty without held-out data.
        precision: of matrix products in training; fp32 also stands for the weights' own precision.
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
    """Fine-tune ``field`` by maximum likelihood through the ``nfe`` evaluations of inference.

    The loss is (6) of arXiv 2510.02081, on noise and data paired by ``coupling``. Training changes a copy of ``field``,
    on the GPU if there is one. The copy is in evaluation mode, since inference runs without dropout too. Its frozen
    parameters stay frozen.

    Args:
        field: a trained velocity field, called as field(t (B,), x (B, …), condition (B, …)) → velocity, shaped as x,
            with standard normal noise at t = 0 and data at t = 1; condition is None if ``data`` has none. Wrap a model
            w with the opposite direction of time as v(t, x, c) = −w(1 − t, x, c).
        data: x1, or pairs (x1, condition), scaled as in the field's training. A tensor, a tuple of two or a
            ``TensorDataset`` is drawn from with replacement. An iterable of batches, such as a ``DataLoader``, starts
            again when it ends.
        nfe: number of function evaluations at inference.
        coupling: nearest (samples stay diverse), reflow (uses only the shape of the data), independent (modes
            collapse), or another of ``pipeline.flow.coupling``; or a function as described there.
        candidates: K of ``nearest``, the number of noises tried for each datum.
        teacher_nfe: evaluations of the given field's solve that ``reflow`` and ``inversion`` learn from.
        teacher_temperature: factor of the initial noise of ``reflow``'s solve. Below 1 the learned samples vary less
            and are likelier.
        solver: the solver of inference: euler, midpoint, heun or rk4 (1, 2, 2, 4 evaluations a step).
        gradient: direct; checkpointed (same gradient, less memory); adjoint (inexact, for comparison).
        last_steps: number of last steps of the solve that the gradient goes through; None: all.
        covariance: of the residual: identity (loss (6)), or a fixed, learned or profiled diagonal.
        fm_weight: weight of an added flow-matching loss on the straight path, which keeps the field near a flow.
        energy_weight: weight of the added kinetic energy of the solved paths, which keeps them straight.
        lora_rank: 0: train all weights. Above: train additions of this rank to linear and convolution weights (LoRA),
            scaled by ``lora_alpha`` / ``lora_rank`` and merged at the end.
        steps: optimiser steps (AdamW, gradient norm at most 1, cosine schedule after up to 50 steps of warm-up).
        batch_size: rows a step; an iterable has its own batches.
        lr: peak learning rate.
        ema_decay: decay of the moving average of the weights, which is returned; 0: the last weights.
        precision: of matrix products in training: bf16 (autocast), fp32 (the weights' own), or auto: bf16 if the device
            has instructions for it and the weights are float32, else fp32. A resumed run keeps its precision. Readings
            use the weights' own.
        held_out: data not trained on; the diversity monitor uses at most 256 rows, with 16 samples a row at each
            reading. None: no monitor.
        readings: number of evenly spaced readings after that of step 0.
        collapse_below: least healthy spread of the samples, as a share of the given field's at 16 evaluations, or half
            of the given field's own at ``nfe`` if that is less. Below it, there is a ``RuntimeWarning``.
        on_collapse: stop: end training and return the weights of the last healthy reading; warn: continue.
        seed: of all random numbers except those of an iterable.
        state_path: file of the resumable state, removed at the end. A call with the same arguments resumes an
            interrupted run. With data in memory the result is bitwise the same; an iterable starts from its beginning.
            ``history`` then lacks the readings before the interruption, except that of step 0.
        log: called as log(metrics, step) every 50 steps.

    Raises:
        ValueError: an argument is not allowed; one line names it, the given value and the allowed ones.
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
    """Check the field on ``rows`` and claim the resumable state; return the precision, which a resumed run keeps."""
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
    """Build the training for ``options`` in ``precision``; ``rows`` have the data's shape."""
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
    if options.lora_rank > 0:  # after the teacher's copy, which needs no LoRA
        add_lora(velocity, options.lora_rank, options.lora_alpha, generators["lora"])
    return Training(objective, source, generators, options.optimization.with_auto(precision))


def _collapse_stopping(
    velocity: Velocity, held_out: Tensor | tuple[Tensor, Tensor], options: Options, path: Path | None
) -> CollapseStopping:
    """Build the collapse stopping at ``options.nfe`` evaluations, relative to ``velocity`` as it is now."""
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
    """Sample x1, shaped as ``noise``, by ``nfe`` evaluations of ``field`` in evaluation mode.

    Args:
        field: as of ``fine_tune``. noise: x0 (B, …), standard normal. condition: (B, …) or None.
        temperature: factor of the noise; below 1 samples vary less and are likelier.

    Raises:
        ValueError: the solver is unknown, or cannot use exactly ``nfe`` evaluations.
    """
    check_choice("solver", solver, SOLVERS)
    condition = noise.new_empty(len(noise), 0) if condition is None else condition
    with evaluating(field):
        return reconstruct(Velocity(field), temperature * noise, condition, uniform_grid(nfe, solver), solver)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
