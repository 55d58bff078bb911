"""Baselines of a fine-tuned flow: policies of one or two evaluations that are no flows, on the same net.

Each has its own objective and is wrapped as a velocity field, so that the same code measures rollouts and diversity and
counts function evaluations.
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
    """Behaviour cloning, E‖f(0, 0, c) − x1‖²; the net gets neither noise nor time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        return (_first_guess(self.net, condition, data) - data).square().mean()


class MinimalIterative(Objective):
    """Objective of the minimal iterative policy, MIP (Pan et al. 2025, arXiv 2512.01809).

    One net learns to guess, f(0, 0, c) → x1, and to correct a guess, f(t*, x̃, c) → x1. In form ``printed``,
    x̃ = t* x1 + (1 − t*) z with z standard normal, and the loss is the sum of both squared errors. In form ``code``, as
    in the authors' code, x̃ = x1 + (1 − t*) z, and the errors are divided by t*² and (1 − t*)². Departures: errors are
    means over components, not sums over an action's; the net and optimiser are this project's.

    Args:
        generators: stream ``noise`` is drawn from.
    """

    def __init__(self, net: nn.Module, generators: Generators, form: MipForm = "printed") -> None:
        super().__init__()
        self.net = net
        self.generators = generators
        self.form = form

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        t = INTERMEDIATE_TIME
        noise = Source(self.generators["noise"]).like(data)
        disturbed = (data if self.form == "code" else t * data) + (1 - t) * noise
        guess = (_first_guess(self.net, condition, data) - data).square().mean()
        mended = (self.net(data.new_full((len(data),), t), disturbed, condition) - data).square().mean()
        return guess / t**2 + mended / (1 - t) ** 2 if self.form == "code" else guess + mended


class ImplicitMaximumLikelihood(Objective):
    """Objective of IMLE Policy (Rana et al. 2025, arXiv 2502.12371): it pulls the nearest of many samples to the datum.

    Samples are f(0, z, c), z standard normal. Those within the threshold of their datum are dropped, and the distance
    of the nearest one left is minimised, not squared. A datum with none left does not count. The coupling ``nearest``
    of ``pipeline.flow.coupling`` applies the same idea (Li & Malik 2018) to the solve of a trained flow, with squared
    distances and no threshold. Departures: the threshold is a root mean square, so that it holds for actions of any
    length; the net and optimiser are this project's.

    Args:
        samples: m, the number of samples for each datum.
        threshold: root mean square distance below which a sample is dropped. The authors' Euclidean 0.03 in 32
            components is 0.0053 here.
        generators: stream ``noise`` is drawn from.
    """

    def __init__(self, net: nn.Module, samples: int, threshold: float, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.samples = samples
        self.threshold = threshold
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        noise = Source(self.generators["noise"]).like(repeated(data, self.samples * len(data)))
        with torch.no_grad():  # only the chosen samples need a gradient; they are made again below
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
    """Objective of a one-evaluation policy by drifting (Deng et al. 2026, arXiv 2602.04770; DBP, arXiv 2604.03540).

    Samples f(0, z, c) of one condition are attracted by its datum and repelled by one another; they are regressed on
    their drifted positions. Departures from DBP: with ``per_step`` each action of a chunk drifts by itself, as in a
    port of the authors' code on the same task, which bounds the samples' spread; the net and optimiser are this
    project's.

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
        """Return the scalar loss. condition: (B, C), data: (B, horizon, A)."""
        noise = Source(self.generators["noise"]).like(repeated(data, self.samples * len(data)))
        made = in_solve(self.net, condition, len(noise))(0.0, noise).unflatten(0, (len(data), self.samples))
        of_datum = data[:, None]
        if self.per_step:
            made, of_datum = made.permute(2, 0, 1, 3), of_datum.permute(2, 0, 1, 3)
        else:
            made, of_datum = made.flatten(2)[None], of_datum.flatten(2)[None]
        return drifting_loss(made.float(), of_datum.float(), self.kernel_scales)


def drifting_loss(made: Tensor, positive: Tensor, kernel_scales: Sequence[float]) -> Tensor:
    """Return the drifting loss of samples, averaged over sets of conditions.

    Distances are in units of their mean over a set and drifts in units of their root mean square over it, as in the
    code of both papers. The loss is therefore about constant in training and does not measure the samples' quality.

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
    """Velocity field with a single Euler step that ends at f(0, 0, c) from any x; for NFE 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, shaped as x. t: (B,), x: (B, …), condition: (B, C)."""
        del t
        return _first_guess(self.net, condition, x) - x


class GeneratorField(nn.Module):
    """Velocity field with a single Euler step that goes from x to f(0, x, c); for NFE 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, shaped as x. t: (B,) of zeros, x: (B, …), condition: (B, C)."""
        return self.net(t, x, condition) - x


class MinimalIterativeField(nn.Module):
    """Velocity field of MIP's two Euler steps, the guess â = f(0, 0, c) and the correction f(t*, t* â, c); for NFE 2.

    In form ``code``, which does not scale data by t*, the correction is f(t*, â, c).
    """

    def __init__(self, net: nn.Module, form: MipForm = "printed") -> None:
        super().__init__()
        self.net = net
        self.shrink = 1.0 if form == "code" else INTERMEDIATE_TIME

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, shaped as x. t: (B,) of one value, 0 or ½, x: (B, …), condition: (B, C)."""
        if t[0] < 0.25:  # x(½) = (x + â) / 2 + (â − x) / 2 = â
            aim = _first_guess(self.net, condition, x)
        else:
            aim = self.net(torch.full_like(t, INTERMEDIATE_TIME), self.shrink * x, condition)
        return 2 * (aim - x)


def _first_guess(net: nn.Module, condition: Tensor, like: Tensor) -> Tensor:
    return net(like.new_zeros(len(like)), torch.zeros_like(like), condition)
