"""Make demonstrations by a task's scripted expert: play episodes, and keep those that it solves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.statistics import proportion_interval
from pipeline.experts.collect import collect
from pipeline.experts.episode import Expert, ExpertEpisode
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.provenance import write_checksum

if TYPE_CHECKING:  # it imports PyTorch, which the processes of an expert do not need
    from pipeline.training.problem import Workspace


def demonstrate(
    task: str,
    expert: Expert,
    seeds: Sequence[int],
    most: int,
    out: Path,
    here: "Workspace",
    *,
    workers: int,
    report: Path | None = None,
) -> str:
    """Write the first ``most`` solved episodes to ``out`` and its checksum beside it; return a one-line summary.

    Args:
        here: keeps finished episodes, so that an interrupted run resumes.
        workers: processes, 0 for none; no influence on the result.
        report: file for the success rate, as JSON; None: none is written.

    Raises:
        UserError: no episode was solved.
    """
    episodes = collect(expert.demonstrate, seeds, here.resume / "episodes", workers=workers)
    solved = [episode for episode in episodes if episode.success]
    kept = solved[:most]
    if not kept:
        raise UserError(f"{task}: the expert solved none of {len(seeds)} episodes")
    expert.write(out, kept)
    write_checksum(out)
    rate = proportion_interval([episode.success for episode in episodes])
    if report:
        write_text(report, json.dumps(success_report(task, episodes), indent=2) + "\n")
    here.run.log({"success": rate.mean, "score": sum(episode.score for episode in episodes) / len(episodes)})
    steps = sum(len(episode.actions) for episode in kept)
    return (
        f"{len(solved)} of {len(seeds)} episodes solved: {rate.mean:.3f}, 95 % interval {rate.low:.3f} to "
        f"{rate.high:.3f}; {len(kept)} kept, {steps} steps → {out}"
    )


def success_report(task: str, episodes: Sequence[ExpertEpisode]) -> dict[str, object]:
    """Return the expert's success rate with its 95 % interval, its mean number of steps, and the seeds."""
    rate = proportion_interval([episode.success for episode in episodes])
    numbers = {"success": rate.mean, "success_low": rate.low, "success_high": rate.high}
    numbers["mean_steps"] = sum(len(episode.actions) for episode in episodes) / len(episodes)
    seeds = {"episodes": len(episodes), "first_seed": episodes[0].seed, "last_seed": episodes[-1].seed}
    return {"task": task} | seeds | {name: round(number, 4) for name, number in numbers.items()}
