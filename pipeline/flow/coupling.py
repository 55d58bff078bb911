"""Couplings: how noise x0 is paired with data x1.

In fine-tuning the coupling is the method. Loss (6) of the paper is minimised by the conditional mean E[x1 | x0, c];
with x0 drawn independently of x1 that is E[x1 | c], and the modes collapse. A coupling that depends on what a model
already makes of x0 keeps them. Those by optimal transport are in ``pipeline.flow.transport``.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from pipeline.flow.pairing import Coupling, Models, Pair, Source
from pipeline.flow.transport import conditional_ot, minibatch_ot, sinkhorn


def independent(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
    """x0 drawn without a look at x1: the product coupling, as loss (6) is printed."""
    del condition, models
    return Pair(source.like(x1), x1)


def nearest(candidates: int, chunk: int = 4096) -> Coupling:
    """Of ``candidates`` noises for each datum, the one whose reconstruction lies nearest to it.

    Implicit maximum likelihood estimation (Li & Malik 2018) on the model's own solve: every datum pulls the sample that
    is already closest, so that no datum is forgotten and no sample is pulled to the mean. IMLE Policy (Rana et al.
    2025) does so with a generator trained from random weights, whose distances are not squared and whose samples are
    dropped where they are near enough, see ``pipeline.training.one_step_baselines``. With one candidate it equals
    ``independent``.

    Args:
        candidates: K, at least 1.
        chunk: rows solved at once; bounds the memory of the search whatever the batch and K.
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
    """x0 by the frozen base model's fine solve of x1 backwards in time, where the source could have drawn it.

    The pairs are the graph of the base model's own map, taken from its end in the data, so that few steps are taught
    to do what many did. The reverse solve may well end where the source has no mass (a field that fits its data closely
    contracts around them, and backwards takes them to the middle of the noise), and a model trained there learns
    nothing about real noise. ‖x0‖² of standard normal noise of d components follows the χ² law of d degrees of freedom:
    rows whose ‖x0‖² lies outside the central ``typical_quantile`` of that law are paired by ``fallback`` instead, and
    figure ``fallback_share`` is their share of the batch. The norm is all that is looked at.

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
    """Which rows of x0 (B, …) lie outside the central ``typical_quantile`` of the norms of standard noise: (B,)."""
    norm = x0.flatten(1).double().square().sum(1)
    low, high = _central_chi_square(x0[0].numel(), typical_quantile)
    return ~((low <= norm) & (norm <= high))  # so written that NaN is atypical


@cache
def _central_chi_square(degrees: int, probability: float) -> tuple[float, float]:
    """The bounds that a χ² variable lies within with ``probability``, and outside with equal chance on either side."""
    from scipy.special import gammaincinv

    tail = (1 - probability) / 2
    return 2 * float(gammaincinv(degrees / 2, tail)), 2 * float(gammaincinv(degrees / 2, 1 - tail))


def reflow(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
    """Fresh noise x0, and for x1 what the frozen base model's fine solve makes of it (rectified flow, Liu et al. 2023).

    The pairs are the graph of one map, so that E[x1 | x0, c] is a sample of the base model and not a mean. Of the data
    only the shape is used: what is learned is the base model in fewer evaluations, with its faults.
    """
    x0 = source.like(x1)
    with torch.no_grad():
        return Pair(x0, models.teach(x0, condition))


AHEAD = ("inversion", "reflow")
"""Couplings whose solves do not depend on the model being trained: they can be made once, before training."""


def made_ahead(kind: str, coupling: Coupling) -> Coupling:
    """``coupling``, one of ``AHEAD``, for solves made before training: it is given noise and data, (B, 2, …)."""

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
    """The coupling named ``kind``.

    Args:
        kind: independent, minibatch_ot, sinkhorn, conditional_ot, nearest, inversion or reflow; the first four ask for
            no model.
        candidates: of ``nearest``, and of the search that ``inversion`` falls back to (1: to ``independent``).
        regularization: of ``sinkhorn``.
        condition_weight: of ``conditional_ot``.
        typical_quantile: of ``inversion``.
        ahead: whether its solves were made before training, see ``made_ahead``; for those of ``AHEAD``.

    Raises:
        ValueError: no coupling of that name, or one whose solves cannot be made ahead.
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
    """N-step forward solves that ``kind`` adds to an update, for each datum.

    Args:
        candidates: as in ``make_coupling``.
        teacher_solves: evaluations of the base model's fine solve over N; 0 where solves were made ahead.
        fallback_share: of ``inversion``: the share of rows that fall back. Where it is not known, 1: flow matching
            continued for the same compute is to have no less.
    """
    search = candidates if candidates > 1 else 0
    inversion = teacher_solves + search * fallback_share
    return {"nearest": search, "inversion": inversion, "reflow": teacher_solves}.get(kind, 0)
