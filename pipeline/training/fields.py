"""Wrap a user's velocity field for this library, and check it before training."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.flow.objective import reconstruct
from pipeline.flow.pairing import Coupling
from pipeline.ode.fixed_step import uniform_grid
from pipeline.settings.schema import Solver
from pipeline.training.loop import Batches


class Velocity(nn.Module):
    """User's field, called with None in place of an empty condition (B, 0)."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.field(t, x, None if condition.shape[1:] == (0,) else condition)


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out rows for the diversity monitor."""

    held_out_condition: Tensor
    held_out_action: Tensor


@dataclass(frozen=True)
class FieldSampler:
    """Field with its solver, as a sampler for the diversity monitor."""

    net: nn.Module
    solver: Solver

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        return reconstruct(self.net, noise, condition, uniform_grid(nfe, self.solver), self.solver)


@torch.no_grad()
def check_field(net: nn.Module, rows: Batches, coupling: str | Coupling | None, name: str = "data") -> None:
    """Check that the field runs on two rows, which messages call ``name``.

    Raises:
        ValueError: it fails or returns another shape, or ``coupling`` does not support the condition.
    """
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
