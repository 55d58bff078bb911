"""Training of the diffusion baseline: a net that predicts noise."""

import torch
from torch import Tensor, nn

from pipeline.flow.diffusion import TRAINING_STEPS, noise_prediction_loss
from pipeline.flow.pairing import Source
from pipeline.seeding import Generators
from pipeline.training.loop import Objective


class NoisePrediction(Objective):
    """The simple loss of DDPM (Ho et al. 2020, eq. 14), the noise level k uniform on 0 … 999.

    Args:
        net: ε_θ(t, x, c). generators: streams ``noise`` and ``time`` are drawn from.
    """

    def __init__(self, net: nn.Module, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        x0 = Source(self.generators["noise"]).like(data)
        k = torch.randint(TRAINING_STEPS, (len(data),), generator=self.generators["time"]).to(data.device)
        return noise_prediction_loss(self.net, x0, data, condition, k)
