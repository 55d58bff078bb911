"""Solve with the frozen base model for ``reflow`` and ``inversion``, online or ahead of training.

The solves do not depend on the model being trained, so that they can be made once, before training. Then 16 or 128
evaluations a pair are spent once and not in every step.
"""

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.flow.coupling import make_coupling
from pipeline.flow.objective import reconstruct
from pipeline.flow.pairing import Coupling, Source
from pipeline.nets.modes import in_evaluation_mode
from pipeline.ode.fixed_step import uniform_grid
from pipeline.settings.blocks import CoupledUpdates
from pipeline.training.loop import Batches
from pipeline.utils.atomic import replacing
from pipeline.utils.precision import PrecisionSetting, autocast
from pipeline.utils.seeding import Generators

_ROWS = 4096  # solved at once


class Teacher(nn.Module):
    """Frozen copy of ``net`` as it is now, with its fine solves.

    ``teach`` solves by Euler, as rollouts of the base model do, so that the student learns that policy. ``invert``
    solves backwards by RK4, since Euler steps back do not undo Euler steps forth.

    Args:
        nfe: evaluations of either solve; a multiple of 4 for ``invert``.
        temperature: factor τ of the initial noise of ``teach``: the student learns x0 → φ(τ x0). Below 1 the taught
            samples are likelier.
    """

    def __init__(self, net: nn.Module, nfe: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.net = deepcopy(net).requires_grad_(False)
        self.nfe = nfe
        self.temperature = temperature

    @torch.no_grad()
    @in_evaluation_mode
    def teach(self, x0: Tensor, condition: Tensor) -> Tensor:
        """Solve x0 (B, …) → x1."""
        return reconstruct(self.net, self.temperature * x0, condition, uniform_grid(self.nfe))

    @torch.no_grad()
    @in_evaluation_mode
    def invert(self, x1: Tensor, condition: Tensor) -> Tensor:
        """Solve backwards, x1 (B, …) → x0.

        Raises:
            ValueError: ``nfe`` is no multiple of 4.
        """
        return reconstruct(self.net, x1, condition, uniform_grid(self.nfe, "rk4")[::-1], "rk4")


def paired(
    recipe: CoupledUpdates, net: nn.Module, batches: Batches, generators: Generators, keep: Path | None
) -> tuple[Coupling, Batches]:
    """Return the coupling of ``recipe``, and ``batches``, with their noise if the base model ``net`` solves ahead.

    Args:
        generators: stream ``pairs`` is drawn from. keep: as of ``solved_ahead``.
    """
    options = recipe.model_dump(include={"candidates", "regularization", "condition_weight", "typical_quantile"})
    coupling = make_coupling(recipe.coupling, **options, ahead=recipe.solves_ahead)
    if not recipe.solves_ahead:
        return coupling, batches
    teacher, draws = Teacher(net, recipe.teacher_nfe, recipe.reflow_temperature), recipe.precomputed_pairs
    return coupling, solved_ahead(
        recipe.coupling, teacher, batches, draws, generators["pairs"], precision=recipe.precision, keep=keep
    )


def solved_ahead(
    kind: str,
    teacher: Teacher,
    batches: Batches,
    draws: int,
    generator: torch.Generator,
    *,
    precision: PrecisionSetting = "fp32",
    keep: Path | None = None,
) -> Batches:
    """Return ``batches`` with noise: data (W·draws, 2, …) of x0 and x1, for ``make_coupling(kind, ahead=True)``.

    Args:
        kind: ``reflow``: ``draws`` noises for each row's condition, with the teacher's samples; ``inversion``: each
            row's datum, once, with the end of the teacher's backward solve.
        generator: of the noise. precision: bf16 or fp32. keep: file that keeps the result.
    """
    if keep is not None and keep.exists():
        return Batches(**torch.load(keep, weights_only=True))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher.to(device)
    each = draws if kind == "reflow" else 1
    rows = max(1, _ROWS // each)
    pairs = []
    with tqdm(total=len(batches.data) * each, desc=f"{kind} pairs", unit="pair", unit_scale=True) as bar:
        for condition, data in zip(batches.condition.split(rows), batches.data.split(rows), strict=True):
            c, x = condition.to(device), data.to(device)
            with autocast(device.type, precision):
                if kind == "reflow":
                    x0 = Source(generator).like(x[:1].expand(len(x) * each, *x.shape[1:]))
                    pair = x0, teacher.teach(x0, c).float()
                else:
                    pair = teacher.invert(x, c).float(), x
            pairs.append(torch.stack(pair, dim=1).to(batches.data.device))
            bar.update(len(pair[0]))
    made = Batches(batches.condition.repeat_interleave(each, dim=0), torch.cat(pairs))
    if keep is not None:
        with replacing(keep) as temporary:
            torch.save({"condition": made.condition, "data": made.data}, temporary)
    return made
