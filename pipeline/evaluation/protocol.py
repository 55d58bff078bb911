"""Which seeds are for what, and one call that rolls a policy out under a task's settings."""

from collections.abc import Iterable
from pathlib import Path

import torch

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import Episode, EpisodeResult, Policy, rollout
from pipeline.settings.schema import EvaluationSettings
from pipeline.tasks.registry import TASKS
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import fitting_workers

FIRST_TEST_SEED = 100_000
FIRST_VALIDATION_SEED = 200_000


def test_seeds(count: int) -> range:
    """Seeds that results are reported on; nothing is ever chosen by them."""
    return range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)


def validation_seeds(count: int) -> range:
    """Seeds that checkpoints and settings are chosen on."""
    return range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + count)


def require_evaluation(name: str, task: str) -> None:
    """Refuse an evaluation that ``task`` does not have.

    Raises:
        UserError: naming the ones it has.
    """
    allowed = TASKS[task].evaluations
    if name not in allowed:
        raise UserError(f"--evaluation: given {name!r}, allowed for {task}: {', '.join(allowed)}")


def run_episodes(
    policy: FlowPolicy,
    task: str,
    evaluation: str,
    nfe: int,
    seeds: Iterable[int],
    settings: EvaluationSettings,
    *,
    repeats: int = 1,
    journal: Path | None = None,
) -> list[EpisodeResult]:
    """Roll ``policy`` out at ``nfe`` evaluations on every (seed, repeat); results sorted by them.

    It is moved to the GPU where there is one.
    """
    acting = policy.to("cuda" if torch.cuda.is_available() else "cpu").acting(nfe)
    return run_acting(acting, task, evaluation, seeds, settings, repeats=repeats, journal=journal)


def run_acting(
    policy: Policy,
    task: str,
    evaluation: str,
    seeds: Iterable[int],
    settings: EvaluationSettings,
    *,
    repeats: int = 1,
    journal: Path | None = None,
) -> list[EpisodeResult]:
    """As ``run_episodes``, of whatever acts, where it is."""
    return rollout(
        policy,
        TASKS[task].evaluation(evaluation, settings.order, settings.max_steps),
        [Episode(seed, repeat) for seed in seeds for repeat in range(repeats)],
        batch=settings.num_envs,
        block=settings.policy_batch_size,
        workers=fitting_workers(settings.workers),
        journal=journal,
    )
