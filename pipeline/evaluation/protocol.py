"""The evaluation protocol: one call that rolls a policy out under a task's settings."""

from collections.abc import Iterable
from pathlib import Path

import torch

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import Episode, EpisodeResult, Policy, rollout
from pipeline.settings.schema import EvaluationSettings
from pipeline.tasks.api import Task
from pipeline.tasks.vector import EnvFactory
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import fitting_workers


def find_env_factory(task: Task, block: str, name: str, settings: EvaluationSettings | None = None) -> EnvFactory:
    """Return the environment of ``task`` that tables call ``name``, with its options and limit of steps.

    Args:
        block: the name of the task's block in params.yaml, which the names of its evaluations contain.
        settings: its steps and options; None: the steps of the literature, and the default options.

    Raises:
        UserError: no evaluation has that name; the message lists the names.
    """
    allowed = task.evaluations(block)
    if name not in allowed:
        raise UserError(f"--evaluation: given {name!r}, allowed for {block}: {', '.join(allowed) or 'none'}")
    options = task.options_from(settings.options if settings else {})
    return allowed[name].factory(options, settings.max_steps if settings else None)


def run_episodes(
    policy: FlowPolicy,
    env_factory: EnvFactory,
    nfe: int,
    seeds: Iterable[int],
    settings: EvaluationSettings,
    *,
    repeats: int = 1,
    journal: Path | None = None,
) -> list[EpisodeResult]:
    """Roll ``policy`` out at ``nfe`` evaluations on every (seed, repeat); results are sorted by (seed, repeat).

    The policy is moved to the GPU if there is one.
    """
    acting = policy.to("cuda" if torch.cuda.is_available() else "cpu").acting(nfe)
    return run_acting(acting, env_factory, seeds, settings, repeats=repeats, journal=journal)


def run_acting(
    policy: Policy,
    env_factory: EnvFactory,
    seeds: Iterable[int],
    settings: EvaluationSettings,
    *,
    repeats: int = 1,
    journal: Path | None = None,
) -> list[EpisodeResult]:
    """Roll out any ``Policy`` as ``run_episodes`` does, on the device that it is on."""
    return rollout(
        policy,
        env_factory,
        [Episode(seed, repeat) for seed in seeds for repeat in range(repeats)],
        num_envs=settings.num_envs,
        policy_batch_size=settings.policy_batch_size,
        workers=fitting_workers(settings.workers),
        journal=journal,
    )
