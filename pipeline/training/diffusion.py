"""Training of the diffusion baseline: a net that predicts noise."""

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
    """The simple loss of DDPM (Ho et al. 2020, eq. 14), the noise level k uniform on all of the scheduler's.

    Args:
        net: ε_θ(t, x, c). generators: streams ``noise`` and ``time`` are drawn from.
        scheduler: which noise levels there are; None: the 1000 that image models are trained on.
    """

    def __init__(self, net: nn.Module, generators: Generators, scheduler: "DDPMScheduler | None" = None) -> None:
        super().__init__()
        self.net = net
        self.generators = generators
        self.scheduler = make_scheduler() if scheduler is None else scheduler

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        x0 = Source(self.generators["noise"]).like(data)
        k = torch.randint(len(self.scheduler), (len(data),), generator=self.generators["time"]).to(data.device)
        return noise_prediction_loss(self.net, x0, data, condition, k, self.scheduler)
