"""Which seeds are for what, and one call that rolls a policy out under a task's settings."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.config import EvaluationSettings
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import Episode, EpisodeResult, rollout
from pipeline.tasks.registry import TASKS

FIRST_TEST_SEED = 100_000
FIRST_VALIDATION_SEED = 200_000


def test_seeds(count: int) -> range:
    """Seeds that results are reported on; nothing is ever chosen by them."""
    return range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)


def validation_seeds(count: int) -> range:
    """Seeds that checkpoints and settings are chosen on."""
    return range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + count)


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
    """Roll ``policy`` out at ``nfe`` evaluations on every (seed, repeat); results sorted by them."""
    return rollout(
        policy.acting(nfe),
        TASKS[task].evaluation(evaluation, settings.reset_order, settings.max_steps),  # type: ignore[arg-type]
        [Episode(seed, repeat) for seed in seeds for repeat in range(repeats)],
        batch=settings.batch,
        block=settings.block,
        workers=settings.workers,
        journal=journal,
    )
