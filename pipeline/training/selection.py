"""Choose a checkpoint, on validation seeds or held-out data only."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.protocol import find_env_factory, run_episodes
from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.flow.objective import flow_matching_loss
from pipeline.flow.path import PATHS
from pipeline.nets.modes import evaluating
from pipeline.settings.schema import PretrainSettings, TaskSettings
from pipeline.training.data import PreparedData
from pipeline.utils.seeding import derive

_DRAWS = 8


@dataclass(frozen=True)
class Candidate:
    """Checkpoint with its scores; the greatest ``value`` wins."""

    checkpoint: str
    train_steps: int
    value: float
    figures: dict[str, float]


@dataclass(frozen=True)
class Selection:
    """Chosen checkpoint, with the rule and the candidates."""

    rule: str
    selected: str
    candidates: list[Candidate]

    def report(self) -> dict[str, object]:
        """Return the content of reports/<scale>/selection/<task>.json."""
        return asdict(self)


def select(paths: list[Path], judge: Callable[[Path], Candidate], rule: str) -> Selection:
    """Judge every checkpoint and choose the best, the longest trained one of equals."""
    candidates = [judge(path) for path in paths]
    best = max(candidates, key=lambda candidate: (candidate.value, candidate.train_steps))
    return Selection(rule, best.checkpoint, candidates)


def roll_out(
    policy: FlowPolicy, task: str, settings: TaskSettings, nfe: int, seeds: Sequence[int], journal: Path
) -> list[EpisodeResult]:
    """Roll ``policy`` out in the evaluation that chooses checkpoints; ``journal`` keeps episodes for a resume."""
    simulated = find_env_factory(settings.load_task(), task, settings.select.evaluation, settings.evaluation)
    return run_episodes(policy, simulated, nfe, seeds, settings.evaluation, journal=journal)


def mean_scores(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Return the mean max score and the share of successes."""
    return {
        "max_score": float(np.mean([result.max_score for result in results])),
        "success": float(np.mean([result.success for result in results])),
    }


@torch.no_grad()
def held_out_loss(policy: FlowPolicy, data: PreparedData, settings: PretrainSettings, seed: int) -> float:
    """Return the flow-matching loss on held-out windows; all checkpoints get the same draws of noise and time."""
    generator = torch.Generator().manual_seed(derive(seed, "held-out loss"))
    path = PATHS[settings.path](settings.sigma)
    x1, condition = data.held_out_action, data.held_out_condition
    losses = []
    with evaluating(policy):
        for _ in range(_DRAWS):
            x0 = torch.randn(x1.shape, generator=generator)
            epsilon = torch.randn(x1.shape, generator=generator)
            t = torch.rand(len(x1), generator=generator)
            losses.append(flow_matching_loss(policy.net, path, x0, x1, condition, t, epsilon))
    return torch.stack(losses).mean().item()
