"""Step many simulated environments in worker processes, a whole chunk of actions per message.

A control step of a small simulator takes a fraction of a millisecond, less than waking another process. One message per
chunk and worker makes this cost negligible; receding-horizon control executes whole chunks anyway. The module does not
depend on any task.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from pipeline.utils.platform import die_with_parent

SHUTDOWN_SECONDS = 5.0


class Transition(NamedTuple):
    """Result of one control step."""

    observation: np.ndarray  # (D,) float64
    score: float  # 0 to 1
    success: bool
    done: bool  # solved, or out of steps


class Env(Protocol):
    """A simulated task. Equal reset arguments and actions must give equal transitions, bit for bit."""

    def reset(self, *args: Any, **arguments: Any) -> np.ndarray:
        """Start an episode, by keyword arguments of the task, and return its first observation (D,), float64."""

    def step(self, action: np.ndarray) -> Transition:
        """Hold ``action`` (A,), in environment units, for one control step."""


@dataclass(frozen=True)
class EnvFactory:
    """How to make the environments of an evaluation: the environment, its initial states and the limit of steps."""

    make_env: Callable[[], Env]  # called inside the workers, so it must be picklable
    reset_arguments: Callable[[int], Mapping[str, Any]]  # from the episode's seed; called in the parent
    max_steps: int  # control steps after which the environment itself ends an episode


@dataclass(frozen=True)
class ChunkResult:
    """Result of a chunk of actions; n < chunk steps if the episode ended inside it."""

    observations: np.ndarray  # (n, D) float64, after each executed action
    scores: np.ndarray  # (n,) float64
    success: bool
    done: bool


class Slots:
    """Environments in this process by slot number; each is made at the first reset of its slot."""

    def __init__(self, make_env: Callable[[], Env]) -> None:
        self._make_env = make_env
        self._envs: dict[int, Env] = {}

    def reset(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[int, np.ndarray]:
        """Start episodes as ``ChunkedWorkers.reset`` does."""
        for slot in requests:
            if slot not in self._envs:
                self._envs[slot] = self._make_env()
        return {slot: self._envs[slot].reset(**arguments) for slot, arguments in requests.items()}

    def step_chunks(self, requests: Mapping[int, np.ndarray]) -> dict[int, ChunkResult]:
        """Execute a chunk of actions (chunk, A) in each given slot, up to the end of its episode."""
        return {slot: _step_chunk(self._envs[slot], actions) for slot, actions in requests.items()}


def _step_chunk(env: Env, actions: np.ndarray) -> ChunkResult:
    transitions: list[Transition] = []
    for action in actions:
        transitions.append(env.step(action))
        if transitions[-1].done:
            break
    last = transitions[-1]
    observations = np.stack([transition.observation for transition in transitions])
    scores = np.array([transition.score for transition in transitions])
    return ChunkResult(observations, scores, last.success, last.done)


class ChunkedWorkers:
    """Environments spread over worker processes; slot ``s`` is in worker ``s % workers``.

    With ``workers=0`` everything runs in this process, with the same results. An exception in a worker is raised here,
    with the worker's traceback as a note. Workers die with the thread that started them, even if SIGKILL ends it.
    """

    def __init__(self, make_env: Callable[[], Env], workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers is {workers}, must be at least 0")
        self._local = Slots(make_env) if workers == 0 else None
        self._workers: list[_Worker] = []
        self._stepping: Mapping[int, np.ndarray] = {}
        try:
            self._workers.extend(_Worker() for _ in range(workers))
            self._exchange(dict.fromkeys(range(workers), ("start", make_env)))
        except BaseException:
            self._stop(patience=0.0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop(patience=SHUTDOWN_SECONDS if error is None else 0.0)

    def reset(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[int, np.ndarray]:
        """Start an episode in each given slot, with the environment's reset arguments; return first observations (D,).

        Raises:
            RuntimeError: a worker process died.
        """
        return self._local.reset(requests) if self._local else self._call("reset", requests)

    def begin_chunks(self, requests: Mapping[int, np.ndarray]) -> None:
        """Begin to execute a chunk of actions (chunk, A) in each given slot, up to the end of its episode.

        No other method may be called before ``finish_chunks``.
        """
        self._stepping = requests
        if not self._local:
            self._send(self._shares("step_chunks", requests))

    def finish_chunks(self) -> dict[int, ChunkResult]:
        """Wait for the chunks that were begun, and return their results.

        Raises:
            RuntimeError: a worker process died.
        """
        requests, self._stepping = self._stepping, {}
        if self._local:
            return self._local.step_chunks(requests)
        return _by_slot(self._receive({slot % len(self._workers) for slot in requests}))

    def _call(self, method: str, requests: Mapping[int, Any]) -> dict[int, Any]:
        return _by_slot(self._exchange(self._shares(method, requests)))

    def _shares(self, method: str, requests: Mapping[int, Any]) -> dict[int, tuple[str, dict[int, Any]]]:
        """Make the message to each worker."""
        shares: dict[int, dict[int, Any]] = {}
        for slot, request in requests.items():
            shares.setdefault(slot % len(self._workers), {})[slot] = request
        return {worker: (method, share) for worker, share in shares.items()}

    def _exchange(self, messages: Mapping[int, tuple[str, Any]]) -> list[Any]:
        self._send(messages)
        return self._receive(messages)

    def _send(self, messages: Mapping[int, tuple[str, Any]]) -> None:
        for worker, message in messages.items():
            self._workers[worker].send(message)

    def _receive(self, workers: Iterable[int]) -> list[Any]:
        # Receive every reply before an error is raised, so that none remains for the next call.
        replies = [self._workers[worker].receive() for worker in workers]
        for error, _ in replies:
            if error is not None:
                raise error
        return [answer for _, answer in replies]

    def _stop(self, patience: float) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.stop(patience)


def _by_slot(replies: Iterable[Mapping[int, Any]]) -> dict[int, Any]:
    return {slot: answer for reply in replies for slot, answer in reply.items()}


class _Worker:
    """The parent's end of a worker process.

    It is a plain subprocess, not multiprocessing's "spawn". That would import the program's main module again in every
    worker, with torch (seconds and hundreds of megabytes), and would set threads for the parent as well.
    """

    def __init__(self) -> None:
        self.connection, child = Pipe()
        with child:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({child.fileno()}, {os.getpid()})"],
                pass_fds=[child.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ
                | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
                | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def send(self, message: tuple[str, Any]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker shows itself in receive()
            self.connection.send(message)

    def receive(self) -> tuple[Exception | None, Any]:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            code = self.process.wait()
            return RuntimeError(f"simulation worker {self.process.pid} died (exit code {code}; see stderr)"), None

    def stop(self, patience: float) -> None:
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(descriptor: int, parent: int) -> None:
    """Run a worker process: answer the calls on a connection until its other end is closed."""
    die_with_parent(parent, signal.SIGKILL)  # during a simulation a worker does not notice a closed pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    connection = Connection(descriptor)
    slots: Slots | None = None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            message = connection.recv_bytes()
            try:
                method, argument = pickle.loads(message)
                if method == "start":
                    slots, answer = Slots(argument), None
                else:
                    answer = getattr(slots, method)(argument)
            except Exception as error:
                connection.send((_portable(error), None))
            else:
                connection.send((None, answer))


def _portable(error: Exception) -> Exception:
    """Return the error itself if it can be pickled, else a replacement, with its traceback as a note."""
    note = f"in a simulation worker:\n{''.join(traceback.format_exception(error))}"
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
