"""What all Prefect flows do alike: DVC's output becomes their log, and what went wrong is one line."""

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
"""The processes of this flow run."""

_LAST_LINES = 50


def state_after(work: Callable[[], object]) -> State[None]:
    """Do ``work``; what the user can mend becomes a failed state of one line: Prefect logs an exception's traceback."""
    try:
        work()
    except (UserError, StageError, OSError) as error:  # the last of a full disk, or of a folder that may not be written
        get_run_logger().error(str(error))
        return Failed(message=str(error))
    return Completed()


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Take the traceback from a record about a failed state, of which Prefect logs one that is none."""
    if record.exc_info and not record.exc_info[0]:
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


def log(text: str) -> None:
    """Say a piece of output in the log of the task or flow that runs."""
    if text.strip():
        get_run_logger().info(text.rstrip())


def run_dvc(arguments: Sequence[str], root: Path) -> None:
    """Run DVC in ``root``, with the run cache of ``pipeline.orchestration.run_cache``; see ``run_module``."""
    run_module(["pipeline.orchestration.run_cache", *arguments], root)


def push(root: Path) -> None:
    """Give DVC's remote what was made in ``root`` and it lacks; see ``run_module``."""
    run_module(["pipeline.orchestration.share", "--new"], root)


def run_module(words: Sequence[str], root: Path) -> None:
    """Run ``python -m words…`` in ``root``, its output line by line in the Prefect log.

    Raises:
        StageError: it ended with another exit code than 0, or the flow is being stopped; the last line that told of an
            error is in the message.
    """
    process = started.start([sys.executable, "-m", *words], cwd=root, env=environment(root))
    if not process:
        raise StageError("stopped before it began")
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
    """A deployment of ``flow``, found by its module: a file path would be looked for below the working directory."""
    made = flow.to_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH, **options)
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made


@contextmanager
def stopping_processes() -> Iterator[None]:
    """Leave no process behind when the flow is cancelled: that reaches it as an exception."""
    started.stopped = False
    try:
        yield
    except BaseException:
        started.stop()
        raise


def environment(root: Path) -> dict[str, str]:
    """What the programs that this flow run starts have in their environment."""
    run_id = prefect.runtime.flow_run.id
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLOWTUNE_ROOT": str(root),
        "FLOWTUNE_RUN": f"prefect-{run_id}",
        **SELDOM,
    }
