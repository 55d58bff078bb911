"""Train a flow map from a trained flow; it goes from any time to any later one in one evaluation.

X_{s,t}(x) = x + (t − s) u(s, t, x, c), where u(t, t, ·) is the flow's velocity. The training is Lagrangian
self-distillation, LSD (Boffi, Albergo & Vanden-Eijnden 2025, arXiv 2505.18825).
"""

import math

import torch
from torch import Tensor, nn
from torch.func import jvp

from pipeline.flow.pairing import Source
from pipeline.training.loop import Objective
from pipeline.utils.seeding import Generators

STEP_FEATURES = 9
"""Number of features of a step's length h in the condition: h, and sines and cosines of low frequency."""

_FLAT_UNTIL, _WHOLE_FROM = 0.2, 0.7
"""Shares of training between which the longest step grows from 0 to 1."""


def step_features(h: Tensor) -> Tensor:
    """Return features (B, STEP_FEATURES) of h (B,), all zero at h = 0, where the velocity is that of the base flow."""
    angles = math.pi * h[:, None] * torch.arange(1, 1 + STEP_FEATURES // 2, device=h.device, dtype=h.dtype)
    return torch.cat([h[:, None], angles.sin(), angles.cos() - 1], dim=1)


@torch.no_grad()
def widened(net: nn.Module, wider: nn.Module) -> nn.Module:
    """Copy the weights of ``net`` into ``wider``, a net of the same kind with a longer condition; the rest is zero.

    Raises:
        ValueError: this kind of net does not take its condition last.
    """
    own = dict(net.named_parameters())
    for name, parameter in wider.named_parameters():
        given = own[name]
        if parameter.shape == given.shape:
            parameter.copy_(given)
        elif parameter.dim() == 2 and parameter.shape[0] == given.shape[0]:
            parameter.copy_(nn.functional.pad(given, (0, parameter.shape[1] - given.shape[1])))
        else:
            raise ValueError(
                f"{name}: of shape {tuple(given.shape)} and {tuple(parameter.shape)} with a longer condition"
            )
    return wider


class FlowMapField(nn.Module):
    """Velocity field of a flow map for one step length, at which Euler steps are the map's.

    Args:
        net: f(t, x, (c, step features)). steps: number of steps from 0 to 1.
    """

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.net = net
        self.steps = steps

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, shaped as x. t: (B,), x: (B, …), condition: (B, C)."""
        return average_velocity(self.net, t, torch.full_like(t, 1 / self.steps), x, condition)


def average_velocity(net: nn.Module, s: Tensor, h: Tensor, x: Tensor, condition: Tensor) -> Tensor:
    """Return u(s, s + h, x, c), the velocity of the straight step from s that ends where the flow is at s + h."""
    return net(s, x, torch.cat([condition, step_features(h).expand(len(condition), -1)], dim=1))


class LagrangianSelfDistillation(Objective):
    """LSD loss: flow matching for steps of length 0, and ‖∂_t X_{s,t}(x_s) − u(t, t, X_{s,t}(x_s))‖² for the others.

    Each batch is split between both. No gradient goes through u(t, t, ·). Departures: the map starts from a trained
    flow; the longest step is 0 in the first fifth of training and grows to 1 at seven tenths, as MIP's authors do it;
    the net and optimiser are this project's.

    Args:
        net: f(t, x, (c, step features)), see ``widened``.
        share: share of each batch for steps of positive length.
        updates: number of updates of the whole training.
        generators: streams ``noise``, ``time`` and ``later time`` are drawn from.
    """

    def __init__(self, net: nn.Module, share: float, updates: int, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.share = share
        self.updates = updates
        self.generators = generators
        self._done = nn.Module()
        self._done.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def beside(self) -> nn.Module:
        return self._done

    @property
    def longest(self) -> float:
        """Return the longest step that is learned at this point of training."""
        done = int(self._done.get_buffer("updates")) / self.updates
        return min(1.0, max(0.0, (done - _FLAT_UNTIL) / (_WHOLE_FROM - _FLAT_UNTIL)))

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        noise = Source(self.generators["noise"]).like(data)
        t = torch.rand(len(data), generator=self.generators["time"]).to(data)
        other = torch.rand(len(data), generator=self.generators["later time"]).to(data)
        longest = self.longest
        if self.training and torch.is_grad_enabled():
            self._done.get_buffer("updates").add_(1)
        mapped = round(self.share * len(data)) if longest > 0 else 0
        s, end = torch.minimum(t, other), torch.maximum(t, other)
        s = torch.maximum(s, end - longest)
        at = torch.where(torch.arange(len(t), device=t.device) < mapped, s, t)
        column = at.view(-1, *[1] * (data.dim() - 1))
        x = (1 - column) * noise + column * data
        flat = slice(mapped, None)
        still = torch.zeros_like(t[flat])
        velocity = average_velocity(self.net, t[flat], still, x[flat], condition[flat])
        matched = (velocity - (data - noise)[flat]).square().flatten(1).mean(1).sum()
        self.metrics = {}
        if not mapped:
            return matched / len(data)
        first = slice(0, mapped)
        distilled = self._distilled(s[first], end[first] - s[first], x[first], condition[first])
        self.metrics = {"distilled": distilled.detach().mean()}
        return (matched + distilled.sum()) / len(data)

    def _distilled(self, s: Tensor, h: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """Return the error of each row, (B,), in float32, since it is a difference of close numbers."""
        with torch.autocast(x.device.type, enabled=False):
            ones = torch.ones_like(h)
            u, slope = jvp(lambda h: average_velocity(self.net, s, h, x, condition), (h,), (ones,))[:2]
            length = h.view(-1, *[1] * (x.dim() - 1))
            with torch.no_grad():
                there = x + length * u
                aim = average_velocity(self.net, s + h, torch.zeros_like(h), there, condition)
            return (u + length * slope - aim).square().flatten(1).mean(1)
