"""Maximum-likelihood fine-tuning: the reconstruction loss through the N-step solve of inference."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.flow.covariance import Covariance, Identity
from pipeline.flow.objective import reconstruct, reconstruct_with_energy
from pipeline.flow.pairing import NO_MODELS, Coupling, Source
from pipeline.flow.path import AffinePath
from pipeline.ode.fixed_step import uniform_grid
from pipeline.ode.gradient import Gradient, update_passes
from pipeline.training.loop import BatchSource, Objective
from pipeline.training.pretrain import drawn_matching_loss
from pipeline.training.teacher import Teacher
from pipeline.utils.seeding import Generators

FM_UPDATE = 3
"""Cost of one flow-matching update in forward passes: one forward, and a backward of twice that."""

_MEASURED_BATCHES = 8
"""Number of batches that the residual's variances are measured on. 512 Gaussian residuals give them within 6 %."""


class Reconstruction(Objective):
    """Likelihood loss of the data through a fixed-step solve of ``nfe`` evaluations, with optional penalties.

    The default is loss (6) of arXiv 2510.02081. Metrics beside the coupling's: ``fm_term`` and ``energy``, unweighted,
    if they are added; ``reconstruction`` (loss (6)), if it is not the whole loss.

    Args:
        net: velocity field, already trained. coupling: pairs noise with data, see ``pipeline.flow.coupling``.
        nfe: N, the number of function evaluations at inference.
        generators: stream ``noise`` is drawn from, and those named below.
        teacher_nfe: evaluations of the fine solve for the couplings ``reflow`` and ``inversion``, by a frozen copy of
            ``net`` as it is now, see ``pipeline.training.teacher``; None: no copy is made.
        teacher_temperature: factor of the initial noise of ``reflow``'s solve.
        solver: that of inference, one of ``pipeline.ode.fixed_step.SOLVERS``.
        gradient, last_steps: see ``pipeline.ode.gradient``.
        covariance: of the residual, see ``pipeline.flow.covariance``; None: the identity. Its start is measured through
            the coupling; streams ``covariance batches`` and ``covariance noise``.
        fm_weight: weight λ ≥ 0 of the flow-matching loss of the paired x1 with independent noise, which keeps the field
            near a flow; streams ``regularization noise``, ``regularization time`` and ``regularization path``.
        path: path of that loss, as in pretraining; required if λ > 0.
        energy_weight: weight μ ≥ 0 of the mean energy of the solved paths, see ``reconstruct_with_energy``.

    Raises:
        ValueError: ``fm_weight`` without ``path``.
    """

    def __init__(
        self,
        net: nn.Module,
        coupling: Coupling,
        nfe: int,
        generators: Generators,
        *,
        teacher_nfe: int | None = None,
        teacher_temperature: float = 1.0,
        solver: str = "euler",
        gradient: Gradient = "direct",
        last_steps: int | None = None,
        covariance: Covariance | None = None,
        fm_weight: float = 0.0,
        path: AffinePath | None = None,
        energy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if fm_weight > 0 and path is None:
            raise ValueError(f"path: given None, allowed with fm_weight = {fm_weight}: the path used in pretraining")
        self.net = net
        self.coupling = coupling
        self.grid = uniform_grid(nfe, solver)
        self.generators = generators
        self.solver = solver
        self.gradient: Gradient = gradient
        self.last_steps = last_steps
        self.covariance = covariance or Identity()
        self.fm_weight = fm_weight
        self.path = path
        self.energy_weight = energy_weight
        self.models = replace(NO_MODELS, reconstruct=lambda x, c: reconstruct(net, x, c, self.grid, solver))
        if teacher_nfe is not None:
            self.teacher = Teacher(
                net, teacher_nfe, teacher_temperature
            )  # a submodule, so that it moves to the device too
            self.models = replace(self.models, teach=self.teacher.teach, invert=self.teacher.invert)

    @property
    def beside(self) -> nn.Module:
        return self.covariance

    @torch.no_grad()
    def begin(self, batches: BatchSource, size: int) -> None:
        """Measure the mean squared residual of each component if the covariance starts from it."""
        if not self.covariance.measured:
            return
        squares = []
        for _ in range(_MEASURED_BATCHES):
            condition, data = batches.draw(size, self.generators["covariance batches"])
            pair = self.coupling(data, condition, Source(self.generators["covariance noise"]), self.models)
            squares.append((self.models.reconstruct(pair.x0, condition) - pair.x1).square().mean(0))
        self.covariance.start(torch.stack(squares).mean(0))

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        pair = self.coupling(data, condition, Source(self.generators["noise"]), self.models)
        made, energy = self._solve(pair.x0, condition)
        residual = made - pair.x1
        loss = self.covariance(residual)
        terms: dict[str, Tensor] = {}
        if energy is not None:
            terms["energy"] = energy
            loss = loss + self.energy_weight * energy
        if self.fm_weight > 0:
            terms["fm_term"] = self._fm_term(condition, pair.x1)
            loss = loss + self.fm_weight * terms["fm_term"]
        if terms or self.covariance.measured:
            terms["reconstruction"] = residual.square().mean()
        self.metrics = {**pair.metrics, **{name: value.detach() for name, value in terms.items()}}
        return loss

    def _solve(self, x0: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the reconstruction, and the batch's mean energy if it is penalised."""
        if self.energy_weight > 0:
            made, energy = reconstruct_with_energy(
                self.net, x0, condition, self.grid, self.solver, gradient=self.gradient, last_steps=self.last_steps
            )
            return made, energy.mean()
        made = reconstruct(
            self.net, x0, condition, self.grid, self.solver, gradient=self.gradient, last_steps=self.last_steps
        )
        return made, None

    def _fm_term(self, condition: Tensor, x1: Tensor) -> Tensor:
        assert self.path is not None
        noise = Source(self.generators["regularization noise"]).like(x1)
        return drawn_matching_loss(
            self.net, self.path, noise, x1, condition, self.generators, purpose="regularization "
        )


def update_cost(
    nfe: int,
    solves: float,
    *,
    solver: str = "euler",
    gradient: Gradient = "direct",
    last_steps: int | None = None,
    fm_term: bool = False,
) -> float:
    """Return the cost of an MLE update for each datum, in forward passes; flow matching costs ``FM_UPDATE``.

    The cost ignores that frozen weights (LoRA) need no gradients, and the few batches that measure a covariance once.
    A path's energy costs no pass.

    Args:
        solves: forward solves that the coupling adds to each update, for each datum (``added_solves``).
        solver, gradient, last_steps: recomputing costs passes, truncating saves some.
        fm_term: whether each update has a flow-matching term, which costs as much as a flow-matching update.
    """
    return update_passes(nfe, solver, gradient, last_steps) + nfe * solves + FM_UPDATE * fm_term
