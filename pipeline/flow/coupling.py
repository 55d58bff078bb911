"""Couplings: pair noise x0 with data x1.

The coupling decides what fine-tuning learns. The conditional mean E[x1 | x0, c] minimises loss (6) of the paper. If x0
is drawn independently of x1, this mean is E[x1 | c], and the modes collapse. A coupling that depends on a model's
sample from x0 keeps the modes. Couplings by optimal transport are in ``pipeline.flow.transport``.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from pipeline.flow.pairing import Coupling, Models, Pair, Source
from pipeline.flow.transport import conditional_ot, minibatch_ot, sinkhorn


def independent(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
    """Draw x0 independently of x1: the product coupling, as in loss (6) of the paper."""
    del condition, models
    return Pair(source.like(x1), x1)


def nearest(candidates: int, chunk: int = 4096) -> Coupling:
    """Draw ``candidates`` noises for each datum and keep the one with the nearest reconstruction.

    This is implicit maximum likelihood estimation (Li & Malik 2018) on the model's own solve. Every datum pulls the
    sample that is already closest, so no datum is forgotten and no sample is pulled to the mean. IMLE Policy (Rana et
    al. 2025) trains a generator from random weights in this way; there distances are not squared, and samples that are
    near enough are dropped, see ``pipeline.training.one_step_baselines``. With one candidate this is ``independent``.

    Args:
        candidates: K, at least 1.
        chunk: rows solved at once; bounds the memory of the search for any batch and K.
    """

    def pair(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
        best = source.like(x1)
        if candidates == 1:
            return Pair(best, x1)
        size = max(1, chunk // candidates)
        noises = torch.stack([best, *(source.like(x1) for _ in range(candidates - 1))], dim=1)  # (B, K, …)
        parts = []
        for x0, target, c in zip(noises.split(size), x1.split(size), condition.split(size), strict=True):
            with torch.no_grad():
                made = models.reconstruct(x0.flatten(0, 1), c)
            error = (made.view_as(x0) - target[:, None]).flatten(2).square().sum(-1)
            parts.append(x0[torch.arange(len(x0)), error.argmin(1)])
        return Pair(torch.cat(parts), x1)

    return pair


def inversion(typical_quantile: float, fallback: Coupling) -> Coupling:
    """Solve the frozen base model from x1 backwards in time, and keep the x0 that are plausible noise.

    The pairs follow the base model's own map, so few steps learn to do what many steps did. The reverse solve may end
    where the source has no mass: a field that fits its data closely contracts around them, and backwards it takes them
    to the middle of the noise. A model trained there learns nothing about real noise. For standard normal noise of d
    components ‖x0‖² follows the χ² law of d degrees of freedom. Rows whose ‖x0‖² lies outside the central
    ``typical_quantile`` of that law are paired by ``fallback`` instead. The figure ``fallback_share`` is their share of
    the batch. Only the norm is tested.

    Args:
        typical_quantile: the share of true noise that passes, in (0, 1).
        fallback: a coupling that keeps x1.
    """

    def pair(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
        with torch.no_grad():
            x0 = models.invert(x1, condition)
        away = atypical(x0, typical_quantile)
        if away.any():
            x0 = x0.clone()
            x0[away] = fallback(x1[away], condition[away], source, models).x0
        return Pair(x0, x1, {"fallback_share": away.double().mean()})

    return pair


def atypical(x0: Tensor, typical_quantile: float) -> Tensor:
    """Mark the rows of x0 (B, …) outside the central ``typical_quantile`` of the norms of standard noise: (B,)."""
    norm = x0.flatten(1).double().square().sum(1)
    low, high = _central_chi_square(x0[0].numel(), typical_quantile)
    return ~((low <= norm) & (norm <= high))  # written this way, NaN is atypical


@cache
def _central_chi_square(degrees: int, probability: float) -> tuple[float, float]:
    """Bounds that hold a χ² variable with ``probability``; below and above them it is equally likely."""
    from scipy.special import gammaincinv

    tail = (1 - probability) / 2
    return 2 * float(gammaincinv(degrees / 2, tail)), 2 * float(gammaincinv(degrees / 2, 1 - tail))


def reflow(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
    """Draw fresh noise x0 and solve the frozen base model finely from it to x1 (rectified flow, Liu et al. 2023).

    The pairs follow one map, so E[x1 | x0, c] is a sample of the base model and not a mean. Only the shape of the data
    is used: the model learns to imitate the base model, with its faults, in fewer evaluations.
    """
    x0 = source.like(x1)
    with torch.no_grad():
        return Pair(x0, models.teach(x0, condition))


AHEAD = ("inversion", "reflow")
"""Couplings whose solves do not depend on the model being trained: they can run once, before training."""


def made_ahead(kind: str, coupling: Coupling) -> Coupling:
    """Adapt ``coupling``, one of ``AHEAD``, to solves made before training: x1 is then noise and data, (B, 2, …)."""

    def pair(pairs: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
        x0, x1 = pairs.unbind(1)
        if kind == "reflow":
            return Pair(x0, x1)
        return coupling(x1, condition, source, replace(models, invert=lambda _x, _condition: x0))

    return pair


def make_coupling(
    kind: str,
    candidates: int = 8,
    *,
    regularization: float = 0.05,
    condition_weight: float = 10.0,
    typical_quantile: float = 0.99,
    ahead: bool = False,
) -> Coupling:
    """Make the coupling named ``kind``.

    Args:
        kind: independent, minibatch_ot, sinkhorn, conditional_ot, nearest, inversion or reflow; the first four need no
            model.
        candidates: of ``nearest``, which is also the fallback of ``inversion`` (1: ``independent``).
        regularization: of ``sinkhorn``.
        condition_weight: of ``conditional_ot``.
        typical_quantile: of ``inversion``.
        ahead: whether its solves were made before training, see ``made_ahead``; only for those of ``AHEAD``.

    Raises:
        ValueError: no coupling has that name, or its solves cannot be made ahead.
    """
    couplings: dict[str, Coupling] = {
        "independent": independent,
        "minibatch_ot": minibatch_ot,
        "sinkhorn": sinkhorn(regularization),
        "conditional_ot": conditional_ot(condition_weight),
        "nearest": nearest(candidates),
        "inversion": inversion(typical_quantile, fallback=nearest(candidates)),
        "reflow": reflow,
    }
    if kind not in couplings:
        raise ValueError(f"coupling: given {kind!r}, allowed: {', '.join(couplings)}")
    if ahead and kind not in AHEAD:
        raise ValueError(f"coupling: given {kind!r}, allowed where solves are made ahead: {', '.join(AHEAD)}")
    return made_ahead(kind, couplings[kind]) if ahead else couplings[kind]


def added_solves(kind: str, candidates: int, teacher_solves: float, fallback_share: float = 1.0) -> float:
    """Count the N-step forward solves that ``kind`` adds to an update, for each datum.

    Args:
        candidates: as in ``make_coupling``.
        teacher_solves: evaluations of the base model's fine solve over N; 0 if solves were made ahead.
        fallback_share: of ``inversion``: the share of rows that fall back. Use 1 if it is not known, so that flow
            matching continued for the same compute does not get less.
    """
    search = candidates if candidates > 1 else 0
    inversion = teacher_solves + search * fallback_share
    return {"nearest": search, "inversion": inversion, "reflow": teacher_solves}.get(kind, 0)
