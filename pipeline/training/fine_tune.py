"""Maximum-likelihood fine-tuning of a flow-matching model of one's own, in one call."""

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.flow.coupling import AHEAD, make_coupling
from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.objective import reconstruct
from pipeline.flow.pairing import Coupling
from pipeline.flow.path import i_cfm
from pipeline.nets.lora import add_lora, merge_lora
from pipeline.nets.modes import evaluating
from pipeline.ode.fixed_step import uniform_grid
from pipeline.ode.gradient import GRADIENTS, Gradient
from pipeline.settings.messages import line
from pipeline.settings.schema import Optimization, Solver
from pipeline.training.guard import Guard, Reading
from pipeline.training.loop import Batches, Log, evenly_spaced, make_accelerator, train
from pipeline.training.mle import Reconstruction
from pipeline.training.resume import claim, fingerprint, healthy, kept_precision, release
from pipeline.training.sources import Data, as_rows, as_source
from pipeline.training.watch import Watch
from pipeline.utils.precision import Precision, PrecisionSetting, autocast, begun_with, native
from pipeline.utils.seeding import Generators

_SOLVERS: tuple[Solver, ...] = get_args(Solver)


@dataclass(frozen=True)
class FineTuned:
    """What ``fine_tune`` returns.

    Attributes:
        net: the field with the moving average of the trained weights, in evaluation mode, where the given field was.
        steps: updates that led to it; fewer than asked for where the samples collapsed.
        history: the guard's readings by step, step 0 being the given field; empty without held-out data.
        precision: of the products in training; fp32 stands for the weights' own too.
    """

    net: nn.Module
    steps: int
    history: Mapping[int, Reading]
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
        held_out: data that is not trained on, of which at most 256 rows are used to watch the samples' diversity, each
            reading at a cost of 16 samples a row. None: nothing is watched.
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
        The fine-tuned field, and the guard's readings.

    Raises:
        ValueError: one line that names the argument, what was given and what is allowed.
        FloatingPointError: training diverged.
    """
    settings: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "ema_decay": ema_decay}
    settings["precision"] = precision
    try:
        optimization = Optimization(**settings, weight_decay=0.0, warmup=min(50, steps), max_grad_norm=1.0)
    except ValidationError as error:
        raise ValueError(line(error, settings, lambda _keys: ())) from None
    _check_choice("solver", solver, _SOLVERS)
    _check_choice("gradient", gradient, GRADIENTS)
    _check_choice("covariance", covariance, tuple(COVARIANCES))
    at_least_zero = {"fm_weight": fm_weight, "energy_weight": energy_weight, "lora_rank": lora_rank}
    for name, weight in (at_least_zero | {"teacher_temperature": teacher_temperature}).items():
        if not weight >= 0:
            raise ValueError(f"{name}: given {weight}, allowed: 0 or more")
    _check_choice("on_collapse", on_collapse, ("stop", "warn"))
    _check_positive(nfe=nfe, candidates=candidates, readings=readings, teacher_nfe=teacher_nfe)
    uniform_grid(nfe, solver)  # refuses what does not fit
    if coupling == "reflow" and teacher_nfe <= nfe:
        raise ValueError(f"teacher_nfe: given {teacher_nfe}, allowed for coupling 'reflow': more than nfe = {nfe}")
    if coupling == "inversion" and teacher_nfe % 4:
        raise ValueError(f"teacher_nfe: given {teacher_nfe}, allowed for coupling 'inversion': multiples of 4")
    if not 0 <= collapse_below < 1:
        raise ValueError(f"collapse_below: given {collapse_below}, allowed: at least 0 and below 1")
    pair = make_coupling(coupling, candidates) if isinstance(coupling, str) else coupling
    if not any(parameter.requires_grad for parameter in field.parameters()):
        raise ValueError("field: none of its parameters requires a gradient, allowed: at least one")
    home = next(field.parameters())
    source, sample_rows = as_source(data, home.dtype)
    device = make_accelerator().device
    velocity = _Velocity(deepcopy(field).eval()).to(device)
    auto = native(device.type) if home.dtype == torch.float32 else "fp32"
    with autocast(device.type, optimization.with_auto(auto).precision):
        _check_field(velocity, sample_rows, coupling)
    path = Path(state_path) if state_path is not None else None
    if path is not None:
        name = coupling if isinstance(coupling, str) else getattr(coupling, "__qualname__", "")
        chosen = (
            nfe,
            name,
            candidates,
            teacher_nfe,
            teacher_temperature,
            solver,
            gradient,
            last_steps,
            seed,
            optimization,
        )
        terms = (covariance, fm_weight, energy_weight, lora_rank, lora_alpha)
        claim(path, fingerprint(velocity, repr((chosen, terms))))
        auto = begun_with(kept_precision(path), auto)
    optimization = optimization.with_auto(auto)
    watch, history, is_healthy = None, {}, True
    if held_out is not None:
        read = _reader(velocity, held_out, nfe, solver, seed)
        keep = healthy(path) if path is not None else None
        history[0] = read(velocity)
        watch = Watch(
            read, history[0], steps, collapse_below=collapse_below, stop=on_collapse == "stop", tell=_warn, keep=keep
        )
        if keep is None or not keep.exists():  # which a run that is resumed has
            watch.look(0, velocity)

    def look(step: int, net: nn.Module) -> bool:
        nonlocal is_healthy
        if watch is not None:
            history[step], is_healthy = watch.look(step, net)
        return is_healthy

    generators = Generators(seed, "fine_tune")
    objective = Reconstruction(
        velocity,
        pair,
        nfe,
        generators,
        teacher_nfe=teacher_nfe if coupling in AHEAD or not isinstance(coupling, str) else None,
        teacher_temperature=teacher_temperature,
        solver=solver,
        gradient=gradient,
        last_steps=last_steps,
        covariance=COVARIANCES[covariance](sample_rows.data.shape[1:]),
        fm_weight=fm_weight,
        path=i_cfm(0.0),
        energy_weight=energy_weight,
    )
    if lora_rank > 0:  # after the teacher was copied, which has no use for it
        add_lora(velocity, lora_rank, lora_alpha, generators["lora"])
    average = train(
        objective,
        source,
        optimization,
        generators,
        milestones=evenly_spaced(steps, readings) if watch else (),
        on_milestone=look,
        log=log,
        state_path=path,
        title="fine-tune",
    )
    kept = steps
    if watch is not None and not is_healthy:
        kept = watch.go_back(average)
    merge_lora(average)
    if path is not None:
        release(path)
    trained_in = cast(Precision, optimization.precision)
    return FineTuned(cast(_Velocity, average).field.to(home.device).eval(), kept, history, trained_in)


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
    _check_choice("solver", solver, _SOLVERS)
    condition = noise.new_empty(len(noise), 0) if condition is None else condition
    with evaluating(field):
        return reconstruct(_Velocity(field), temperature * noise, condition, uniform_grid(nfe, solver), solver)


class _Velocity(nn.Module):
    """The user's field where an empty condition (B, 0) stands for none, as everything else here has it."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.field(t, x, None if condition.shape[1:] == (0,) else condition)


@dataclass(frozen=True)
class _HeldOut:
    held_out_condition: Tensor
    held_out_action: Tensor


@dataclass(frozen=True)
class _Sampler:
    net: nn.Module
    solver: Solver

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        return reconstruct(self.net, noise, condition, uniform_grid(nfe, self.solver), self.solver)


def _reader(
    net: nn.Module, held_out: Tensor | tuple[Tensor, Tensor], nfe: int, solver: Solver, seed: int
) -> Callable[[nn.Module], Reading]:
    """The guard's reading of a net at ``nfe`` evaluations, held against ``net`` as it is now."""
    rows = as_rows(held_out, next(net.parameters()).dtype, "held_out")
    _check_field(net, rows, None, "held_out")
    guard = Guard(_Sampler(net, solver), _HeldOut(rows.condition, rows.data), seed)
    return lambda changed: guard.read(_Sampler(changed, solver), nfe)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name}: given {given!r}, allowed: {', '.join(allowed)}")


def _check_positive(**counts: int) -> None:
    for name, given in counts.items():
        if not isinstance(given, int) or given < 1:
            raise ValueError(f"{name}: given {given}, allowed: whole numbers from 1")


@torch.no_grad()
def _check_field(net: nn.Module, rows: Batches, coupling: str | Coupling | None, name: str = "data") -> None:
    """Call the field on two rows, before anything costly."""
    rows = Batches(rows.condition[:2], rows.data[:2]).to(next(net.parameters()).device)
    x, condition = rows.data, rows.condition
    if coupling == "conditional_ot" and not (condition.is_floating_point() and condition.dim() > 1):
        raise ValueError(
            f"data: given a condition of {condition.dtype} and shape {tuple(condition.shape)}, allowed for "
            "coupling 'conditional_ot': floating point (B, …), such as one-hot labels"
        )
    shapes = f"t {(len(x),)}, x {tuple(x.shape)}, condition "
    shapes += "None" if condition.shape[1:] == (0,) else f"{tuple(condition.shape)}"
    shapes += " in bf16" if torch.is_autocast_enabled(x.device.type) else ""
    try:
        velocity = net(x.new_full((len(x),), 0.5), x, condition)
    except Exception as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise ValueError(f"field: called on {name} with {shapes}, it failed: {detail}") from error
    if not isinstance(velocity, Tensor) or velocity.shape != x.shape:
        given = tuple(velocity.shape) if isinstance(velocity, Tensor) else type(velocity).__name__
        raise ValueError(f"field: called with {shapes}, it returned {given}, allowed: {tuple(x.shape)}, shaped as x")
