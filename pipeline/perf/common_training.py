"""Train as the scripts of diffusers, LeRobot and TorchCFM do: the peer of this project's training loop."""

from collections.abc import Callable
from typing import Literal

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional
from torchdiffeq import odeint, odeint_adjoint

from pipeline.settings.schema import Optimization

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A peer's loss: net, condition (B, C), data, noise (B, …), time (B,) → scalar."""


class CommonTraining:
    """Train in float32 with PyTorch's default AdamW and diffusers' EMA and schedule; every step reads the loss.

    Args:
        net: trained in place. optimization: the settings, the same as for ours.
    """

    def __init__(self, net: nn.Module, loss: Loss, optimization: Optimization) -> None:
        self.net = net
        self.loss = loss
        self.clip = optimization.max_grad_norm
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=optimization.lr, weight_decay=optimization.weight_decay)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, optimization.warmup, optimization.steps)
        self.average = EMAModel(net.parameters(), decay=optimization.ema_decay)

    def step(self, condition: Tensor, data: Tensor, noise: Tensor, time: Tensor) -> float:
        """Make one update and return its loss."""
        loss = self.loss(self.net, condition, data, noise, time)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.step(self.net.parameters())
        return loss.item()


def common_matching(net: nn.Module, condition: Tensor, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Compute the flow-matching loss on the straight path."""
    t = time.view(-1, *[1] * (data.dim() - 1))
    return functional.mse_loss(net(time, (1 - t) * noise + t * data, condition), data - noise)


def odeint_loss(nfe: int, gradient: Literal["direct", "adjoint"]) -> Loss:
    """Make the reconstruction loss by torchdiffeq's Euler steps."""

    class Field(nn.Module):
        def __init__(self, net: nn.Module, condition: Tensor) -> None:
            super().__init__()
            self.net = net
            self.condition = condition

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.net(t.expand(len(x)), x, self.condition)

    def loss(net: nn.Module, condition: Tensor, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        del time
        solver = {"direct": odeint, "adjoint": odeint_adjoint}[gradient]
        made = solver(Field(net, condition), noise, torch.linspace(0, 1, nfe + 1), method="euler")[-1]
        return functional.mse_loss(made, data)

    return loss
