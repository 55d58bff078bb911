"""After SIGKILL no process of a stage goes on, and the next run ends with identical files."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.project import ALONE, Project, executed, kill, wait_for


def steps_done(resume: Path) -> int:
    """Return the training step of the saved state."""
    state = resume / "state.pt"
    return torch.load(state, weights_only=True)["step"] if state.exists() else 0


def episodes_done(resume: Path) -> int:
    journal = resume / "pusht_a.jsonl"  # the first of the two evaluations
    return journal.read_text(encoding="utf-8").count("\n") if journal.exists() else 0


@dataclass(frozen=True)
class Victim:
    """A stage to be killed.

    Attributes:
        name, command, outs: as in dvc.yaml.
        done: returns the units of work saved in a resume folder. total: all units of the stage.
        shown: returns the start of the progress bar after a resume at so many units.
    """

    name: str
    command: tuple[str, ...]
    outs: tuple[str, ...]
    done: Callable[[Path], int]
    total: int
    shown: Callable[[int], str]


OF_TASK = ("--scale", "starter", "--task", "pusht")
VICTIMS = [
    Victim(
        "pretrain@starter-pusht",
        ("stages.train", *OF_TASK, "--method", "fm"),
        ("data/starter/pusht/pretrain", "reports/starter/pretrain/pusht.csv"),
        steps_done,
        400,
        lambda done: f" {done}/400 ",
    ),
    Victim(
        "finetune@starter-pusht-ft_fm-2",
        ("stages.train", *OF_TASK, "--method", "ft_fm", "--nfe", "2"),
        ("data/starter/pusht/models/ft_fm-nfe2.safetensors", "reports/starter/history/pusht-ft_fm-nfe2.csv"),
        steps_done,
        200,
        lambda done: f" {done}/200 ",
    ),
    Victim(
        "finetune_residual@starter-pusht-resft_fm-nfe2",
        ("stages.train", *OF_TASK, "--row", "resft_fm-nfe2"),
        ("data/starter/pusht/models/resft_fm-nfe2.safetensors", "reports/starter/residual/pusht-resft_fm-nfe2.csv"),
        steps_done,
        200,
        lambda done: f" {done}/200 ",
    ),
    Victim(
        "evaluate_rollouts@starter-pusht-fm-1",
        ("stages.evaluate", *OF_TASK, "--method", "fm", "--nfe", "1"),
        ("reports/starter/episodes/pusht-fm-nfe1.csv", "reports/starter/metrics/pusht-fm-nfe1.json"),
        episodes_done,
        20,
        lambda done: f" 0.00/{(20 - done) * 24}",
    ),
    Victim(
        "train_toys@starter",
        ("stages.toys", "train", "--scale", "starter"),
        ("data/starter/toys",),
        lambda resume: len(list(resume.glob("[!.]*.safetensors"))),
        7,
        lambda done: f" {done}/7 ",
    ),
]


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_killed_stage_resumes_to_identical_files(victim: Victim, made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    reports = [project.root / out for out in victim.outs if out.startswith("reports/")]
    for out in {project.root / out for out in victim.outs}.difference(reports):
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    lock = (project.root / "dvc.lock").read_text(encoding="utf-8")
    force = ("dvc", "repro", "-f", "-s", victim.name)
    # the first as under `dvc repro`, the others in a program server, as under `make repro` and in Prefect flows
    env = ALONE if victim is VICTIMS[0] else {}

    dvc = project.start(*force, **env)
    first = wait_until_at_work(project, victim, more_than=0)
    kill(dvc)
    wait_for(lambda: not project.processes(), "the stage and its workers to die with dvc", seconds=60)
    wait_for(lambda: all(report.exists() for report in reports), "the reports to be put back", seconds=60)

    stage = project.start(*victim.command, **env)
    second = wait_until_at_work(project, victim, more_than=first)
    kill(stage)
    wait_for(lambda: not project.processes(), "the workers to die with the stage", seconds=60)
    kept = victim.done(resume_folder(project))
    assert first < second <= kept < victim.total
    assert [out for out in victim.outs if (project.root / out).exists()] == [
        str(report.relative_to(project.root)) for report in reports
    ]
    assert project.files("reports") == made.files("reports")  # restored after DVC removed them
    assert (project.root / "dvc.lock").read_text(encoding="utf-8") == lock

    finished = project.check(*force)
    assert executed(finished.stdout) == [victim.name]
    assert victim.shown(kept) in finished.stderr  # resumed
    assert project.files("data/starter") == made.files("data/starter")
    assert project.files("reports") == made.files("reports")
    assert not [path for path in (project.root / ".flowtune" / "resume").iterdir() if path.is_dir()]


def resume_folder(project: Project) -> Path:
    """Return the resume folder of the killed stage; one that succeeds deletes its own."""
    (folder,) = [path for path in (project.root / ".flowtune" / "resume").iterdir() if path.is_dir()]
    return folder


def wait_until_at_work(project: Project, victim: Victim, *, more_than: int) -> int:
    """Wait until more than ``more_than`` units of work are saved; return their number."""

    def at_work() -> bool:
        resume = project.root / ".flowtune" / "resume"
        folders = [path for path in resume.iterdir() if path.is_dir()]
        return bool(folders) and victim.done(folders[0]) > more_than

    wait_for(at_work, f"{victim.name} to do more than {more_than} of {victim.total}")
    return victim.done(resume_folder(project))


def test_stage_dies_with_dvc_during_imports(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    dvc = project.start("dvc", "repro", "-f", "-s", "pretrain@starter-pusht", **ALONE)
    wait_for(lambda: any(imports_torch(pid) for pid in stages_in(project)), "the stage to import torch")
    kill(dvc)
    wait_for(lambda: not project.processes(), "the stage to die with dvc", seconds=60)


def test_dvc_and_its_stage_die_with_repro(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    project.keep_stages("resolve", "pretrain")
    project.params("starter.pusht.pretrain.steps", 100_000)
    repro = project.start("pipeline.orchestration.repro")
    wait_for(lambda: "train" in names_of(project), "the stage to be at work")
    kill(repro)
    wait_for(lambda: not project.processes(), "dvc and the stage to die", seconds=60)


def stages_in(project: Project) -> list[int]:
    return [pid for pid, command in project.processes().items() if "-m stages.train" in command]


def names_of(project: Project) -> set[str]:
    """Return the names of a project's processes, as `top` shows them."""
    names = set()
    for pid in project.processes():
        with suppress(OSError):
            names.add(Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip())
    return names


def imports_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    except OSError:
        return False


def test_second_run_is_refused_and_changed_settings_do_not_resume(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    project.params("starter.pusht.pretrain.steps", 100_000)
    victim = VICTIMS[0]
    first = project.start(*victim.command)
    wait_until_at_work(project, victim, more_than=0)
    second = project.run(*victim.command)
    kill(first)
    assert second.returncode == 2
    assert second.stderr.startswith("error: ") and "another process is running this stage" in second.stderr
    assert second.stderr.count("\n") == 1

    project.params("starter.pusht.pretrain.steps", victim.total)
    project.params("starter.pusht.pretrain.lr", 2e-3)
    assert victim.shown(0) in project.check(*victim.command).stderr
    assert project.files("data/starter/pusht/pretrain") != made.files("data/starter/pusht/pretrain")
