"""Policies of one or two evaluations that are no flows, on the same net: what a fine-tuned flow has to beat.

Each is trained by an objective of its own and wrapped as a velocity field, so that rollouts and diversity are measured
by the same code and function evaluations are counted the same way.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.flow.pairing import Source
from pipeline.nets.sharing import in_solve, repeated
from pipeline.training.loop import Objective
from pipeline.utils.seeding import Generators

INTERMEDIATE_TIME = 0.9
"""t* of the minimal iterative policy, as its authors set it."""

MipForm = Literal["code", "printed"]


class Regression(Objective):
    """E‖f(0, 0, c) − x1‖²: behaviour cloning, the net being given neither noise nor time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        return (_first_guess(self.net, condition, data) - data).square().mean()


class MinimalIterative(Objective):
    """The minimal iterative policy, MIP (Pan et al. 2025, arXiv 2512.01809).

    One net learns to guess, f(0, 0, c) → x1, and to mend a guess, f(t*, x̃, c) → x1. As ``printed``, x̃ = t* x1 +
    (1 − t*) z with z standard normal, and the loss is the sum of both squared errors. In its authors' ``code``,
    x̃ = x1 + (1 − t*) z, and the errors are divided by t*² and (1 − t*)². Departures: means over components where the
    code sums over those of an action; the net and optimiser of this project.

    Args:
        generators: stream ``noise`` is drawn from.
    """

    def __init__(self, net: nn.Module, generators: Generators, form: MipForm = "printed") -> None:
        super().__init__()
        self.net = net
        self.generators = generators
        self.form = form

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        t = INTERMEDIATE_TIME
        noise = Source(self.generators["noise"]).like(data)
        disturbed = (data if self.form == "code" else t * data) + (1 - t) * noise
        guess = (_first_guess(self.net, condition, data) - data).square().mean()
        mended = (self.net(data.new_full((len(data),), t), disturbed, condition) - data).square().mean()
        return guess / t**2 + mended / (1 - t) ** 2 if self.form == "code" else guess + mended


class ImplicitMaximumLikelihood(Objective):
    """IMLE Policy (Rana et al. 2025, arXiv 2502.12371): of many samples, the nearest is pulled to the datum.

    Samples are f(0, z, c), z standard normal. Of ``samples`` for each datum, those within the threshold are dropped,
    and the distance of the nearest one left is minimised, not squared; a datum that has none left does not count. In
    ``pipeline.flow.coupling`` the coupling ``nearest`` is the same idea, of Li & Malik (2018), applied to the solve of
    a flow that was trained before: with squared distances, and nothing dropped. Departures: the threshold is for each
    component, so that it means the same in actions of any length; the net and optimiser of this project.

    Args:
        samples: m, for each datum.
        threshold: root mean square distance below which a sample is dropped. The authors' 0.03 is the Euclidean one of
            32 components: 0.0053 here.
        generators: stream ``noise`` is drawn from.
    """

    def __init__(self, net: nn.Module, samples: int, threshold: float, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.samples = samples
        self.threshold = threshold
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        noise = Source(self.generators["noise"]).like(repeated(data, self.samples * len(data)))
        with torch.no_grad():  # the gradient is that of the chosen samples alone, which are made once more
            made = in_solve(self.net, condition, len(noise))(0.0, noise)
            of_datum = made.unflatten(0, (len(data), self.samples)).to(data.dtype)
            distance = (of_datum - data[:, None]).flatten(2).norm(dim=2)
            dropped = distance <= self.threshold * data[0].numel() ** 0.5
            farthest = distance.max()
            nearest, choice = (distance + dropped * farthest).min(dim=1)
            counts = nearest < farthest
        chosen = noise.unflatten(0, (len(data), self.samples))[torch.arange(len(data), device=data.device), choice]
        error = (in_solve(self.net, condition, len(data))(0.0, chosen) - data).flatten(1).norm(dim=1)
        self.metrics = {"used_share": counts.double().mean()}
        return torch.where(counts, error, 0.0).sum() / counts.sum().clamp(min=1)


class Drifting(Objective):
    """A policy in one evaluation by drifting (Deng et al. 2026, arXiv 2602.04770; DBP, arXiv 2604.03540).

    Samples f(0, z, c) of one condition are attracted by its datum and repelled by one another; they are regressed on
    where that drift takes them. Departures from DBP: with ``per_step`` the drift is taken for each action of a chunk by
    itself, which a port of its authors' code does on the same task and which keeps the samples' spread bounded; the net
    and optimiser of this project.

    Args:
        samples: G, for each datum. per_step: whether each action drifts by itself, or the whole chunk.
        kernel_scales: of exp(−distance / scale), in mean distances; the drifts of all are added.
        generators: stream ``noise`` is drawn from.
    """

    def __init__(
        self, net: nn.Module, samples: int, kernel_scales: Sequence[float], generators: Generators, *, per_step: bool
    ) -> None:
        super().__init__()
        self.net = net
        self.samples = samples
        self.kernel_scales = kernel_scales
        self.generators = generators
        self.per_step = per_step

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, horizon, A) → scalar loss."""
        noise = Source(self.generators["noise"]).like(repeated(data, self.samples * len(data)))
        made = in_solve(self.net, condition, len(noise))(0.0, noise).unflatten(0, (len(data), self.samples))
        of_datum = data[:, None]
        if self.per_step:
            made, of_datum = made.permute(2, 0, 1, 3), of_datum.permute(2, 0, 1, 3)
        else:
            made, of_datum = made.flatten(2)[None], of_datum.flatten(2)[None]
        return drifting_loss(made.float(), of_datum.float(), self.kernel_scales)


def drifting_loss(made: Tensor, positive: Tensor, kernel_scales: Sequence[float]) -> Tensor:
    """The drifting loss of samples, each set of conditions by itself, averaged.

    Distances are measured in their mean over a set and drifts in their root mean square over it, as in the code of both
    papers. The loss of a sample is therefore about constant while training: it tells nothing of how good samples are.

    Args:
        made: (N, B, G, S): N sets of B conditions with G samples each. positive: (N, B, P, S), data of each condition.
    """
    size = made.shape[-1]
    x = made.detach()
    targets = torch.cat([x, positive], dim=2)
    distance = torch.cdist(x, targets, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-4)
    mean_distance = distance.mean(dim=(1, 2, 3), keepdim=True)
    unit = (mean_distance / size**0.5).clamp(min=1e-3)
    x, targets = x / unit, targets / unit
    itself = torch.eye(x.shape[2], targets.shape[2], dtype=torch.bool, device=x.device)
    relative = distance / mean_distance.clamp(min=1e-3) + 100.0 * itself
    drift = torch.zeros_like(x)
    for scale in kernel_scales:
        logits = -relative / scale
        weight = (logits.softmax(dim=3) * logits.softmax(dim=2)).clamp(min=1e-6).sqrt()
        repelling, attracting = weight.split([x.shape[2], positive.shape[2]], dim=3)
        pull = torch.cat(
            [-repelling * attracting.sum(3, keepdim=True), attracting * repelling.sum(3, keepdim=True)], dim=3
        )
        move = pull @ targets - pull.sum(3, keepdim=True) * x
        drift = drift + move / move.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8).sqrt()
    return (made / unit - (x + drift)).square().mean()


class RegressionField(nn.Module):
    """The field whose single Euler step from anywhere ends at f(0, 0, c): use it at NFE 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), x: (B, …), condition: (B, C) → velocity, shaped as x."""
        del t
        return _first_guess(self.net, condition, x) - x


class GeneratorField(nn.Module):
    """The field whose single Euler step from x ends at f(0, x, c): use it at NFE 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,) of zeros, x: (B, …), condition: (B, C) → velocity, shaped as x."""
        return self.net(t, x, condition) - x


class MinimalIterativeField(nn.Module):
    """Its two Euler steps are MIP's guess â = f(0, 0, c) and its mending f(t*, t* â, c): use it at NFE 2.

    In the form of its authors' code, which disturbs data and does not shrink them, the mending is f(t*, â, c).
    """

    def __init__(self, net: nn.Module, form: MipForm = "printed") -> None:
        super().__init__()
        self.net = net
        self.shrink = 1.0 if form == "code" else INTERMEDIATE_TIME

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,) of one value, 0 or ½, x: (B, …), condition: (B, C) → velocity, shaped as x."""
        if t[0] < 0.25:  # x(½) = (x + â) / 2 + (â − x) / 2 = â
            aim = _first_guess(self.net, condition, x)
        else:
            aim = self.net(torch.full_like(t, INTERMEDIATE_TIME), self.shrink * x, condition)
        return 2 * (aim - x)


def _first_guess(net: nn.Module, condition: Tensor, like: Tensor) -> Tensor:
    return net(like.new_zeros(len(like)), torch.zeros_like(like), condition)
