"""Couplings by optimal transport within a batch. They need no model, so pretraining can use them too."""

import torch
from torch import Tensor

from pipeline.flow.pairing import Coupling, Models, Pair, Source

_SINKHORN_ITERATIONS = 1000
_SINKHORN_TOLERANCE = 1e-6


def minibatch_ot(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
    """Permute a batch of noise so that Σ‖x0 − x1‖² is least (OT-CFM, Tong et al. 2024; Pooladian et al. 2023).

    The assignment is exact and always a permutation. The common alternative, drawing pairs from a transport plan with
    replacement, duplicates some samples and loses others. The cost ignores the condition, so the noise of one
    observation is no longer standard normal.

    Raises:
        ValueError: the data hold NaN or infinity, for which no assignment exists.
    """
    del condition, models
    x0 = source.like(x1)
    return Pair(x0[_best_permutation(_inner_cost(x0, x1))], x1)


def conditional_ot(weight: float) -> Coupling:
    """Permute a batch of noise so that Σ‖x0 − x1‖² + weight · ‖c − c'‖² is least; c' is the condition of the noise.

    Each row of noise starts with the condition of its own datum. Moving it to another datum costs more if the
    conditions are farther apart (Kerrigan et al. 2024; Chemseddine et al. 2024). Weight 0 is ``minibatch_ot``. As the
    weight grows, noise moves only among equal conditions, and p(x0 | c) stays the source's. If no two conditions are
    equal, the limit is ``independent``.

    Args:
        weight: of the squared distance of conditions, at least 0. A greater weight brings p(x0 | c) nearer to the
            source and makes the paths longer.

    Raises (the coupling):
        ValueError: the data or conditions hold NaN or infinity.
    """

    def pair(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
        del models
        x0 = source.like(x1)
        c = condition.flatten(1).double()
        # without a matrix product, so that equal conditions are exactly 0 apart for any weight
        apart = torch.cdist(c, c, compute_mode="donot_use_mm_for_euclid_dist").square()
        return Pair(x0[_best_permutation(2 * _inner_cost(x0, x1) + weight * apart)], x1)

    return pair


def sinkhorn(regularization: float) -> Coupling:
    """Draw pairs from the entropic transport plan of a batch (Cuturi 2013; as a coupling, Tong et al. 2024).

    The plan minimises ⟨P, ‖x0 − x1‖²⟩ + ε Σ P log P with uniform marginals. Sinkhorn's iterations run on logarithms,
    which stay finite for any small ε. Every datum is kept once and gets a noise x0 drawn from its row of the plan,
    P(x0 | x1). So one noise may serve several data, and another none. ε → 0 is ``minibatch_ot``, ε → ∞
    ``independent``.

    Args:
        regularization: ε over the mean of the batch's costs ‖x0 − x1‖², greater than 0. Below about 0.01 the
            iterations stop (at 1000) before the marginal of the noise has converged; the data's is always exact.

    Raises (the coupling):
        ValueError: the data hold NaN or infinity.
    """

    def pair(x1: Tensor, condition: Tensor, source: Source, models: Models) -> Pair:
        import ot  # here: it takes seconds, and no other coupling needs it

        del condition, models
        x0 = source.like(x1)
        cost = torch.cdist(x1.flatten(1).double(), x0.flatten(1).double()).square()
        if not cost.isfinite().all():
            raise ValueError("the data hold NaN or infinity: no transport plan exists")
        uniform = cost.new_full((len(cost),), 1 / len(cost))
        plan = ot.bregman.sinkhorn_log(
            uniform,
            uniform,
            cost / cost.mean(),
            regularization,
            numItermax=_SINKHORN_ITERATIONS,
            stopThr=_SINKHORN_TOLERANCE,
            warn=False,
        )
        return Pair(x0[source.choose(plan)], x1)

    return pair


def _inner_cost(x0: Tensor, x1: Tensor) -> Tensor:
    """−⟨x0, x1⟩, (B, B): ½‖x0 − x1‖² without the squared norms, whose sum is the same for all permutations."""
    return -(x0.flatten(1).double() @ x1.flatten(1).double().T)


def _best_permutation(cost: Tensor) -> Tensor:
    """Assign a row to each column so that the sum of ``cost`` (B, B) is least: (B,)."""
    from scipy.optimize import linear_sum_assignment  # here: it takes half a second; no other coupling needs it

    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(cost), dtype=torch.long)
    order[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return order.to(cost.device)
