"""Score samples of action chunks, or of forecasts, against the record: errors, likelihood, CRPS, smoothness.

Everything is in normalised units, in which the training actions span [−1, 1].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.windows import ReportedWindows

Array = NDArray[np.floating]

LEAST_VARIANCE = 1e-12
"""Least variance of a component's errors, since 0 has no likelihood: a deviation of 1e-6 of the data's half range."""


@dataclass(frozen=True)
class EpisodeScores:
    """Scores of a model's samples on one episode. Less is better, except for ``spread`` and ``jump``.

    Attributes:
        episode, windows: its number, and the number of windows scored.
        error: root mean square error of a single sample. A model of the whole distribution has √2 times the error of
            its mean, so a model that always answers with the mean looks better here. Read it with ``spread`` and
            ``crps``.
        best_of_k: the same error of each window's nearest sample; large if no sample is near the recorded actions.
        mean_error: the same error of the mean of the samples, which forecasters call RMSE.
        nll: ½ E_i[log σ_i² + e_i²/σ_i²] − ½, e_i a single sample's errors and σ_i² their mean square over all episodes,
            mean over the components i of a chunk. Its mean over windows is ½ E_i[log σ_i²], the profiled negative
            log-likelihood of a component in nats, up to a constant.
        crps: continuous ranked probability score, mean over components; with one sample its absolute error.
        spread: standard deviation of a window's samples, root mean square over windows and components.
        jump: root mean square step from the last executed action of a plan to the first of the next plan; NaN if no two
            plans follow each other. jump_recorded: the same of the record, between the same two steps.
    """

    episode: int
    windows: int
    error: float
    best_of_k: float
    mean_error: float
    nll: float
    crps: float
    spread: float
    jump: float
    jump_recorded: float


SCORES = ("error", "best_of_k", "mean_error", "nll", "crps", "spread", "jump", "jump_recorded")


def score_episodes(
    samples: Array, recorded: Array, windows: ReportedWindows, n_action_steps: int
) -> list[EpisodeScores]:
    """Score ``samples`` (W, K, Tp, A) of ``windows`` against ``recorded`` (W, Tp, A), both normalised, by episode.

    Args:
        n_action_steps: executed actions of a plan, see ``seams``.
    """
    samples, recorded = samples.astype(np.float64), recorded.astype(np.float64)
    errors = samples - recorded[:, None]
    squares = errors**2  # (W, K, Tp, A)
    by_window = {
        "error": squares.mean((1, 2, 3)),
        "best_of_k": squares.mean((2, 3)).min(1),
        "mean_error": (errors.mean(1) ** 2).mean((1, 2)),
        "nll": profiled_nll(errors),
        "crps": crps(samples, recorded).mean((1, 2)),
        "spread": _variance(samples).mean((1, 2)),
    }
    before, after = seams(windows, n_action_steps)
    jumps = ((samples[after, :, 0] - samples[before, :, n_action_steps - 1]) ** 2).mean((1, 2))
    jumps_recorded = ((recorded[after, 0] - recorded[before, n_action_steps - 1]) ** 2).mean(1)
    found = []
    for episode in np.unique(windows.episode):
        of_episode, joined = windows.episode == episode, windows.episode[before] == episode
        means = {name: float(values[of_episode].mean()) for name, values in by_window.items()}
        means |= {"jump": _mean(jumps[joined]), "jump_recorded": _mean(jumps_recorded[joined])}
        squared = {name: value for name, value in means.items() if name not in ("nll", "crps")}
        found.append(
            EpisodeScores(int(episode), int(of_episode.sum()), **means | {n: v**0.5 for n, v in squared.items()})
        )
    return found


def profiled_nll(errors: Array) -> Array:
    """Compute ``EpisodeScores.nll`` of each window, (W,), from errors (W, K, …)."""
    squares = (errors**2).mean(1).reshape(len(errors), -1)
    variance = np.maximum(squares.mean(0), LEAST_VARIANCE)
    return 0.5 * (np.log(variance) + squares / variance - 1).mean(1)


def crps(samples: Array, recorded: Array) -> Array:
    """Compute the CRPS of samples (W, K, …) against ``recorded`` (W, …), component by component, (W, …).

    It is the energy form E|X − y| − ½E|X − X'| (Gneiting and Raftery 2007). The second mean is over pairs of different
    samples, so the estimate is unbiased: its expectation does not depend on the number of samples (Ferro 2014).
    """
    count = samples.shape[1]
    distance = np.abs(samples - recorded[:, None]).mean(1)
    if count == 1:
        return distance
    ordered = np.sort(samples, axis=1)
    weights = (2 * np.arange(count) - count + 1).reshape(-1, *[1] * (samples.ndim - 2))
    return distance - (weights * ordered).sum(1) / (count * (count - 1))


def seams(windows: ReportedWindows, n_action_steps: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find pairs of windows that begin ``n_action_steps`` apart in one episode: indices of the earlier and later."""
    after = np.searchsorted(windows.row, windows.row + n_action_steps)
    inside = after < len(windows.row)
    before, after = np.nonzero(inside)[0], after[inside]
    follows = (windows.row[after] == windows.row[before] + n_action_steps) & (
        windows.episode[after] == windows.episode[before]
    )
    return before[follows], after[follows]


def _variance(samples: Array) -> Array:
    return samples.var(1, ddof=1) if samples.shape[1] > 1 else np.zeros_like(samples[:, 0])


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
