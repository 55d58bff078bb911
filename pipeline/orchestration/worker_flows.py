"""Prefect flows that workers run in their clones: one stage, or one experiment, of a run that began elsewhere.

Results travel through DVC's remote, never through Git. The run cache keeps them under the hashes of their inputs, so
that a clone with the same inputs takes them instead of running the stage.
"""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import BaseModel

from pipeline.orchestration.flow_runs import environment, push, run_dvc, state_after, stopping_processes
from pipeline.orchestration.plan import ask_plan
from pipeline.settings.scale import set_scale
from pipeline.settings.schema import parse
from pipeline.utils.atomic import write_text
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError
from pipeline.utils.platform import lock
from pipeline.utils.provenance import file_at, git

CODE = ("pipeline", "stages", "dvc.yaml", "reports/*/study/dvc.yaml", "requirements*.lock")
"""Files that results depend on besides settings; DVC's lock files have the hashes of data and results."""


class Origin(BaseModel):
    """Code, Python and settings of a run, which its workers must have too.

    Attributes:
        commit: of the code. python: such as 3.11. settings: the text of params.yaml for the workers; None if it is as
            committed, since Prefect's database keeps several copies for each stage.
    """

    commit: str
    python: str
    settings: str | None

    @classmethod
    def of(cls, root: Path) -> "Origin":
        """Return the origin of a run of the project in ``root``.

        Raises:
            UserError: it is no clone, or its code differs from the commit.
        """
        commit, changed = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain", "--", *CODE)
        edited = git(root, "status", "--porcelain", "--", "params.yaml")
        if commit is None or changed is None or edited is None:
            raise UserError(f"{root}: no Git clone with a readable commit; workers run only committed code")
        if changed:
            files = ", ".join(line[3:] for line in changed.splitlines())
            raise UserError(f"{root}: {files} changed since the commit; commit them, workers run only committed code")
        return cls(
            commit=commit,
            python=".".join(map(str, sys.version_info[:2])),
            settings=(root / "params.yaml").read_text(encoding="utf-8") if edited else None,
        )


@flow(name="stage", flow_run_name="{name}", persist_result=False)
def run_stage_here(name: str, origin: Origin) -> State[None]:
    """Pull a stage's inputs from the remote, bring the stage up to date, and push its outputs."""

    def work() -> None:
        root = project_root()
        with as_at(origin, root), stopping_processes():
            plan = ask_plan(root, target=name, env=environment(root))
            repro = ["--wait-for-lock", "repro", "--pull", "--single-item"]
            if inputs := [other for other in plan.inputs if other in plan.stale and other != name]:
                with _alone(root / ".flowtune" / "restore.lock"):  # other stages here may need the same inputs
                    run_dvc([*repro, *inputs], root)
            run_dvc([*repro, name], root)
            push(root)

    return state_after(work)


@flow(name="experiment", flow_run_name="{overrides}", persist_result=False)
def run_experiment_here(overrides: list[str], origin: Origin) -> State[None]:
    """Run the whole pipeline once with ``overrides`` (of ``dvc exp run -S``) in a copy of the clone, and push."""

    def work() -> None:
        root = project_root()
        with as_at(origin, root), stopping_processes():
            options = [part for item in overrides for part in ("-S", item)]
            run_dvc(["exp", "run", "--temp", "--pull", *options], root)
            push(root)

    return state_after(work)


@contextmanager
def as_at(origin: Origin, root: Path) -> Iterator[None]:
    """Give the clone in ``root`` the settings of ``origin``, and keep other runs from changing them during the body.

    Raises:
        UserError: its code or Python differs, or a run with other settings is active in it.
    """
    here, host = Origin.of(root), platform.node()
    if here.python != origin.python:
        raise UserError(f"worker on {host}: Python {here.python}, allowed: {origin.python}, as the run began with")
    if here.commit != origin.commit:
        raise UserError(
            f"worker on {host}: {root} is at commit {here.commit[:12]}, allowed: {origin.commit[:12]}; "
            f"`git fetch && git checkout {origin.commit[:12]}` there"
        )
    path = root / ".flowtune" / "settings.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if here.settings != origin.settings:
            try:
                lock(file)
            except BlockingIOError:
                raise UserError(f"worker on {host}: a run with other settings is at work in {root}; wait") from None
            _set_settings(root, origin.settings)
        lock(file, shared=True)  # replaces the exclusive lock
        yield


def _set_settings(root: Path, text: str | None) -> None:
    """Write params.yaml and switch dvc.lock to its scale; None restores the committed bytes."""
    path = root / "params.yaml"
    committed = file_at(root, "HEAD", path.name) or ""
    set_scale(path, parse(committed if text is None else text, path.name).scale)
    if text is None:
        git(root, "checkout", "--quiet", "HEAD", "--", path.name)
    else:
        write_text(path, text)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as file:
        lock(file, wait=True)
        yield
