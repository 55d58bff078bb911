"""Maximum-likelihood fine-tuning: the reconstruction loss through the N-step solve that inference runs."""

from torch import Tensor, nn

from pipeline.flow.coupling import Coupling, Source
from pipeline.flow.objective import reconstruct, reconstruction_loss
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

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        x0 = self.coupling(data, condition, Source(self.generators["noise"]), self._reconstruct)
        return reconstruction_loss(
            self.net,
            x0,
            data,
            condition,
            self.grid,
            self.solver,
            gradient=self.gradient,
            last_steps=self.last_steps,
        )

    def _reconstruct(self, x0: Tensor, condition: Tensor) -> Tensor:
        return reconstruct(self.net, x0, condition, self.grid, self.solver)


def equal_compute_steps(
    steps: int,
    nfe: int,
    solves: int,
    *,
    solver: str = "euler",
    gradient: Gradient = "direct",
    last_steps: int | None = None,
) -> int:
    """Flow-matching updates that cost as many network passes as ``steps`` MLE updates at ``nfe`` evaluations.

    Args:
        solves: forward solves that the coupling adds to each update, for each datum (``nearest``: K; none for K = 1).
        solver, gradient, last_steps: of the MLE updates; recomputing costs passes, truncating saves some.
    """
    passes = update_passes(nfe, solver, gradient, last_steps) + nfe * solves
    return round(steps * passes / FM_UPDATE)
