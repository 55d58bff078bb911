"""Training objective of the diffusion baseline, a net that predicts noise."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.flow.diffusion import make_scheduler, noise_prediction_loss
from pipeline.flow.pairing import Source
from pipeline.training.loop import Objective
from pipeline.utils.seeding import Generators

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler


class NoisePrediction(Objective):
    """Simple loss of DDPM (Ho et al. 2020, eq. 14), with the noise level k uniform on the scheduler's levels.

    Args:
        net: ε_θ(t, x, c). generators: streams ``noise`` and ``time`` are drawn from.
        scheduler: has the noise levels; None: the 1000 levels of image models.
    """

    def __init__(self, net: nn.Module, generators: Generators, scheduler: "DDPMScheduler | None" = None) -> None:
        super().__init__()
        self.net = net
        self.generators = generators
        self.scheduler = make_scheduler() if scheduler is None else scheduler

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        x0 = Source(self.generators["noise"]).like(data)
        k = torch.randint(len(self.scheduler), (len(data),), generator=self.generators["time"]).to(data.device)
        return noise_prediction_loss(self.net, x0, data, condition, k, self.scheduler)
