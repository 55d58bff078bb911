"""Common functions of the Prefect flows: DVC's output becomes their log, and an error becomes one line."""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prefect
from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType

from pipeline.orchestration.executor import SELDOM, StageError
from pipeline.utils.errors import UserError
from pipeline.utils.processes import Group

started = Group()
"""Processes of this flow run."""

_LAST_LINES = 50


def state_after(work: Callable[[], object]) -> State[None]:
    """Do ``work``; return an expected error as a failed state, since Prefect logs a traceback of exceptions."""
    try:
        work()
    except (UserError, StageError, OSError) as error:  # OSError: a full disk or a read-only folder
        get_run_logger().error(str(error))
        return Failed(message=str(error))
    return Completed()


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Remove the empty traceback that Prefect logs for a failed state; keep the record."""
    if record.exc_info and not record.exc_info[0]:
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


def log(text: str) -> None:
    """Write a piece of output to the log of the running task or flow."""
    if text.strip():
        get_run_logger().info(text.rstrip())


def run_dvc(arguments: Sequence[str], root: Path) -> None:
    """Run DVC in ``root`` with the run cache of ``pipeline.orchestration.run_cache``; see ``run_module``."""
    run_module(["pipeline.orchestration.run_cache", *arguments], root)


def push(root: Path) -> None:
    """Push the results in ``root`` that DVC's remote lacks; see ``run_module``."""
    run_module(["pipeline.orchestration.share", "--new"], root)


def run_module(words: Sequence[str], root: Path) -> None:
    """Run ``python -m words…`` in ``root`` and write its output to the Prefect log, line by line.

    Raises:
        StageError: its exit code is not 0, or the flow is stopped; the message quotes an error line of its output.
    """
    process = started.start([sys.executable, "-m", *words], cwd=root, env=environment(root))
    if not process:
        raise StageError("stopped before its start")
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=_LAST_LINES)
    for line in process.stdout:
        log(line)
        last.append(line.strip())
    if code := process.wait():
        told = [line for line in last if line.lower().startswith("error: ")]
        why = told[0] if told else "its output is in this task's log"
        raise StageError(f"{' '.join(words)}: exit code {code}; {why}")


def deployment_of(flow: Flow[..., Any], name: str, **options: Any) -> RunnerDeployment:
    """Return a deployment of ``flow`` by module; a file path would be resolved in the working directory."""
    made = flow.to_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH, **options)
    assert isinstance(made, RunnerDeployment)  # it is a coroutine only inside an event loop
    return made


@contextmanager
def stopping_processes() -> Iterator[None]:
    """Stop all processes if the body raises, as it does when the flow is cancelled."""
    started.stopped = False
    try:
        yield
    except BaseException:
        started.stop()
        raise


def environment(root: Path) -> dict[str, str]:
    """Return the environment for programs that this flow run starts."""
    run_id = prefect.runtime.flow_run.id
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLOWTUNE_ROOT": str(root),
        "FLOWTUNE_RUN": f"prefect-{run_id}",
        **SELDOM,
    }
