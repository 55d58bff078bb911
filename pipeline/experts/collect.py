"""Collect many episodes of an expert in several processes, one file each, so that an interrupted run resumes."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.experts.episode import ExpertEpisode
from pipeline.utils.atomic import make_folder, replacing
from pipeline.utils.platform import die_with_parent


def collect(
    demonstrate: Callable[[int], ExpertEpisode],
    seeds: Sequence[int],
    folder: Path,
    *,
    workers: int = 0,
    progress: bool = True,
) -> list[ExpertEpisode]:
    """Play the episodes of ``seeds`` that ``folder`` does not hold yet; return all of them, in the order of ``seeds``.

    Args:
        demonstrate: the expert; must be picklable, and each episode must depend only on its seed.
        seeds: without duplicates.
        folder: for finished episodes, solved or not; it belongs to one version of the expert.
        workers: processes, 0 for none; no influence on the result.
        progress: show episodes done and solved and the remaining time on stderr.
    """
    make_folder(folder)
    files = {seed: folder / f"{seed}.npz" for seed in seeds}
    waiting = [seed for seed, file in files.items() if not file.exists()]
    solved = 0
    with tqdm(total=len(files), initial=len(files) - len(waiting), unit="episode", disable=not progress) as bar:
        for success in _play_all(partial(_play, demonstrate, folder), waiting, workers):
            solved += success
            bar.set_postfix(solved=solved, refresh=False)
            bar.update()
    return [_load(file) for file in files.values()]


def _play(demonstrate: Callable[[int], ExpertEpisode], folder: Path, seed: int) -> bool:
    episode = demonstrate(seed)
    arrays = {field.name: getattr(episode, field.name) for field in fields(episode)}
    arrays["extras"] = json.dumps(dict(episode.extras))
    if episode.states is None:
        del arrays["states"]
    with replacing(folder / f"{seed}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return episode.success


def _load(path: Path) -> ExpertEpisode:
    with np.load(path) as file:
        return ExpertEpisode(
            seed=int(file["seed"]),
            observations=file["observations"],
            actions=file["actions"],
            success=bool(file["success"]),
            score=float(file["score"]),
            states=file.get("states"),
            extras=json.loads(str(file["extras"])),
        )


def _play_all(play: Callable[[int], bool], seeds: Sequence[int], workers: int) -> Iterator[bool]:
    """Play the episodes; yield whether each was solved, in the order in which they end."""
    if workers == 0:
        yield from map(play, seeds)
        return
    # spawned, not forked: a fork would share the state of the simulators and their libraries in this process
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(os.getpid(),))
    try:
        for done in as_completed([pool.submit(play, seed) for seed in seeds]):
            yield done.result()
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()  # its episode could run for minutes, and will be played again
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    die_with_parent(parent, signal.SIGKILL)
