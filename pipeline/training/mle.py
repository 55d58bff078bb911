"""Maximum-likelihood fine-tuning: the reconstruction loss through the N-step solve that inference runs."""

from torch import Tensor, nn

from pipeline.flow.coupling import Coupling, Source
from pipeline.flow.objective import reconstruct, reconstruction_loss
from pipeline.ode.fixed_step import uniform_grid
from pipeline.seeding import Generators
from pipeline.training.loop import Objective

FM_UPDATE = 3
"""Cost of one flow-matching update in forward passes: one forward, and a backward of twice that."""


class Reconstruction(Objective):
    """Loss (6) of arXiv 2510.02081 through ``nfe`` Euler steps, with exact gradients of the discrete solve.

    Args:
        net: velocity field, already trained. coupling: pairs noise with data, see ``pipeline.flow.coupling``.
        nfe: N, the number of function evaluations used at inference.
        generators: stream ``noise`` is drawn from.
    """

    def __init__(self, net: nn.Module, coupling: Coupling, nfe: int, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.coupling = coupling
        self.grid = uniform_grid(nfe)
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        x0 = self.coupling(data, condition, Source(self.generators["noise"]), self._reconstruct)
        return reconstruction_loss(self.net, x0, data, condition, self.grid)

    def _reconstruct(self, x0: Tensor, condition: Tensor) -> Tensor:
        return reconstruct(self.net, x0, condition, self.grid)


def equal_compute_steps(steps: int, nfe: int, solves: int) -> int:
    """Flow-matching updates that cost as many network passes as ``steps`` MLE updates at ``nfe`` evaluations.

    Args:
        solves: forward solves that the coupling adds to each update, for each datum (``nearest``: K; none for K = 1).
    """
    return round(steps * nfe * (FM_UPDATE + solves) / FM_UPDATE)
