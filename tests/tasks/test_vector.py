"""Chunked stepping: the same results in this process and in workers, and errors with the worker's traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks.vector import ChunkedWorkers, ChunkResult, Transition
from pipeline.utils.errors import UserError


class Countdown:
    """Adds its actions up; done after ``length`` steps, a success if the sum is positive."""

    def reset(self, *, length: int) -> np.ndarray:
        self.total, self.left = 0.0, length
        return self._observation()

    def step(self, action: np.ndarray) -> Transition:
        if action[0] > 1e3:
            raise UserError(f"cannot add {action[0]:.0f}")
        if action[0] < -1e3:
            os._exit(7)
        self.total += float(action[0])
        self.left -= 1
        return Transition(self._observation(), self.total / 10, self.total > 0, self.left == 0)

    def _observation(self) -> np.ndarray:
        return np.array([self.total, os.getpid(), "torch" in sys.modules])


def chunk(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def step_chunks(simulations: ChunkedWorkers, requests: dict[int, np.ndarray]) -> dict[int, ChunkResult]:
    simulations.begin_chunks(requests)
    return simulations.finish_chunks()


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_stop_at_the_end_of_an_episode_and_slots_are_reused(workers: int) -> None:
    with ChunkedWorkers(Countdown, workers) as simulations:
        first = simulations.reset({0: {"length": 2}, 1: {"length": 9}, 2: {"length": 3}})
        assert {slot: observation[0] for slot, observation in first.items()} == {0: 0.0, 1: 0.0, 2: 0.0}
        results = step_chunks(simulations, {0: chunk(1, 2, 3), 1: chunk(1, 2, 3), 2: chunk(-1, -2, -3)})
        assert results[0].observations[:, 0].tolist() == [1, 3]
        assert results[1].observations[:, 0].tolist() == [1, 3, 6]
        np.testing.assert_array_equal(results[1].scores, [0.1, 0.3, 0.6])
        outcome = {slot: (result.success, result.done) for slot, result in results.items()}
        assert outcome == {0: (True, True), 1: (True, False), 2: (False, True)}
        simulations.reset({2: {"length": 5}})
        later = step_chunks(simulations, {2: chunk(4), 1: chunk(4)})
        assert (later[2].observations[0, 0], later[1].observations[0, 0]) == (4, 10)


def test_slots_are_spread_over_workers_without_torch() -> None:
    with ChunkedWorkers(Countdown, 2) as simulations:
        observations = np.stack(list(simulations.reset({slot: {"length": 1} for slot in range(6)}).values()))
    pids = set(observations[:, 1].astype(int).tolist())
    assert len(pids) == 2 and os.getpid() not in pids
    assert not observations[:, 2].any()
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_type_and_leaves_the_workers_usable(workers: int) -> None:
    with ChunkedWorkers(Countdown, workers) as simulations:
        simulations.reset({slot: {"length": 9} for slot in range(3)})
        with pytest.raises(UserError, match="cannot add 2000") as caught:
            step_chunks(simulations, {0: chunk(1), 1: chunk(2000), 2: chunk(1)})
        if workers:
            assert "in step" in caught.value.__notes__[0]
        simulations.reset({0: {"length": 9}})
        assert step_chunks(simulations, {0: chunk(5)})[0].observations[0, 0] == 5


class UnpicklableError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")


class Unmakeable(Countdown):
    def __init__(self) -> None:
        raise UnpicklableError(3, "no such simulator")


def test_unpicklable_error_is_still_reported() -> None:
    with ChunkedWorkers(Unmakeable, 1) as simulations, pytest.raises(RuntimeError, match="no such simulator") as caught:
        simulations.reset({0: {"length": 1}})
    assert "__init__" in caught.value.__notes__[0]


def test_a_dead_worker_is_reported() -> None:
    with ChunkedWorkers(Countdown, 1) as simulations:
        simulations.reset({0: {"length": 9}})
        with pytest.raises(RuntimeError, match="exit code 7"):
            step_chunks(simulations, {0: chunk(-2000)})


class Hang:
    """Writes its process id to ``marker`` in its first step, and never finishes it."""

    def reset(self, *, marker: Path) -> np.ndarray:
        self.marker = marker
        return np.zeros(1)

    def step(self, action: np.ndarray) -> Transition:
        self.marker.write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(600)
        return Transition(action, 0.0, False, True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a busy child with its parent")
def test_a_busy_worker_dies_with_a_killed_parent(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    program = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from {__name__} import ChunkedWorkers, Hang, chunk
simulations = ChunkedWorkers(Hang, 1)
simulations.reset({{0: {{"marker": Path({str(marker)!r})}}}})
simulations.begin_chunks({{0: chunk(1)}})
simulations.finish_chunks()
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: marker.exists() and marker.read_text(encoding="utf-8") != "")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    worker = int(marker.read_text(encoding="utf-8"))
    wait_until(lambda: is_gone(worker))


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended or is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
