"""Maximum-likelihood fine-tuning: the reconstruction loss through the N-step solve that inference runs."""

from copy import deepcopy

from torch import Tensor, nn

from pipeline.flow.objective import reconstruct, reconstruction_loss
from pipeline.flow.pairing import Coupling, Models, Solve, Source, no_model
from pipeline.ode.fixed_step import uniform_grid
from pipeline.ode.gradient import Gradient, update_passes
from pipeline.seeding import Generators
from pipeline.training.loop import Objective

FM_UPDATE = 3
"""Cost of one flow-matching update in forward passes: one forward, and a backward of twice that."""


class Reconstruction(Objective):
    """Loss (6) of arXiv 2510.02081 through the ``nfe`` evaluations of a fixed-step solve.

    Args:
        net: velocity field, already trained. coupling: pairs noise with data, see ``pipeline.flow.coupling``.
        nfe: N, the number of function evaluations used at inference.
        generators: stream ``noise`` is drawn from.
        teacher_nfe: Euler steps of the fine solve, by a frozen copy of ``net`` as it is now, that the coupling
            ``reflow`` asks for; None: no copy is kept.
        solver: one of ``pipeline.ode.fixed_step.SOLVERS``, that used at inference.
        gradient, last_steps: see ``pipeline.ode.gradient``.
    """

    def __init__(
        self,
        net: nn.Module,
        coupling: Coupling,
        nfe: int,
        generators: Generators,
        *,
        teacher_nfe: int | None = None,
        solver: str = "euler",
        gradient: Gradient = "direct",
        last_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.coupling = coupling
        self.grid = uniform_grid(nfe, solver)
        self.generators = generators
        self.solver = solver
        self.gradient: Gradient = gradient
        self.last_steps = last_steps
        teach: Solve = no_model
        if teacher_nfe is not None:
            self.teacher = deepcopy(net).requires_grad_(False)  # a submodule, so that it moves to the device too
            teach = _solve_by(self.teacher, uniform_grid(teacher_nfe))
        self.models = Models(
            reconstruct=_solve_by(net, self.grid, solver), invert=_solve_by(net, self.grid[::-1], solver), teach=teach
        )

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        pair = self.coupling(data, condition, Source(self.generators["noise"]), self.models)
        self.figures = pair.figures
        return reconstruction_loss(
            self.net,
            pair.x0,
            pair.x1,
            condition,
            self.grid,
            self.solver,
            gradient=self.gradient,
            last_steps=self.last_steps,
        )


def _solve_by(net: nn.Module, grid: list[float], solver: str = "euler") -> Solve:
    return lambda x, condition: reconstruct(net, x, condition, grid, solver)


def equal_compute_steps(
    steps: int,
    nfe: int,
    solves: float,
    *,
    solver: str = "euler",
    gradient: Gradient = "direct",
    last_steps: int | None = None,
) -> int:
    """Flow-matching updates that cost as many network passes as ``steps`` MLE updates at ``nfe`` evaluations.

    Args:
        solves: forward solves that the coupling adds to each update, for each datum (``added_solves``).
        solver, gradient, last_steps: of the MLE updates; recomputing costs passes, truncating saves some.
    """
    passes = update_passes(nfe, solver, gradient, last_steps) + nfe * solves
    return round(steps * passes / FM_UPDATE)
