"""The context of a stage: one-line errors, and a resume folder for each set of inputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration import stage as stages
from pipeline.orchestration.stage import Stage, program, stage
from pipeline.settings.inputs import inputs_of
from pipeline.tracking import queue
from pipeline.utils import code_deps
from pipeline.utils.errors import UserError

PROGRAM = "stages/report.py"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("stages", "pipeline"):
        (tmp_path / folder).symlink_to(code_deps.ROOT / folder)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setenv("FLOWTUNE_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").write_text("one", encoding="utf-8")
    return tmp_path


def resume_of(**changes: object) -> Path:
    """Return the resume folder of a stage that fails after its start."""
    given = {"program": PROGRAM, "params": {"lr": 1.0}, **changes}
    inputs = inputs_of(**given)  # type: ignore[arg-type]
    seen: list[Stage] = []
    with pytest.raises(KeyError), stage(inputs, "work", deps=[Path("input")], outs=[]) as here:
        seen.append(here)
        raise KeyError
    return seen[0].resume


def test_resume_folder_of_a_failed_stage_belongs_to_its_inputs(root: Path) -> None:
    first = resume_of()
    (first / "state").touch()
    assert resume_of() == first and (first / "state").exists()
    assert resume_of(params={"lr": 2.0}) != first
    assert resume_of(program="stages/prepare.py") != first
    (root / "input").write_text("two", encoding="utf-8")
    assert resume_of() != first


def test_successful_stage_deletes_its_resume_folder() -> None:
    with stage(inputs_of(PROGRAM, {}), "work", deps=[Path("input")], outs=[Path("made/out")]) as here:
        (here.resume / "state").touch()
        assert Path("made").is_dir()
    assert not here.resume.exists()


def test_inputs_and_outputs_are_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWTUNE_TRACKING")
    monkeypatch.setenv("FLOWTUNE_ROOT", str(root))
    monkeypatch.setattr(queue, "start_recorder", lambda _: None)
    shutil.copy(code_deps.ROOT / "data/checkpoints/lab/pusht/fm-nfe1.safetensors", "base.safetensors")
    params = {"pusht": {"data": {"dataset": "human"}}}
    tuned = Path("data/lab/pusht/models/fm-nfe1.safetensors")
    for outs in ([], [tuned]):
        with stage(inputs_of(PROGRAM, params), "work", deps=[Path("input"), Path("base.safetensors")], outs=outs):
            for path in outs:
                shutil.copy("base.safetensors", path)
    evaluation, training = (
        {name: rest for name, *rest in map(json.loads, (entry / "lines").read_text(encoding="utf-8").splitlines())}
        for entry in queue.entries(root)
    )
    (data_set,), (digest,), measured = evaluation["read"]
    assert (data_set["name"], measured) == ("human/input", True)  # its metrics belong to the model that it read
    assert evaluation["wrote"] == [[]]
    assert training["read"][2] is False
    ((model,),) = training["wrote"]
    assert (model["name"], model["digest"], model["path"]) == ("pusht-fm-nfe1", digest, str(tuned))


def test_stage_cannot_run_twice_at_once() -> None:
    def begin() -> None:
        with stage(inputs_of(PROGRAM, {}), "work", deps=[], outs=[]):
            pass

    with (
        stage(inputs_of(PROGRAM, {}), "work", deps=[], outs=[]),
        pytest.raises(UserError, match="another process is running this stage"),
    ):
        begin()
    begin()


def test_a_missing_input_is_named() -> None:
    with (
        pytest.raises(UserError, match="absent: not found; it is made by an earlier stage"),
        stage(inputs_of(PROGRAM, {}), "work", deps=[Path("absent")], outs=[]),
    ):
        pass
    assert not Path(".flowtune").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("seed: given -1, allowed: 0 or more"), 2), (FloatingPointError("diverged"), 1)]
)
def test_expected_error_is_one_line(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        program(main)
    assert stop.value.code == code
    assert capsys.readouterr().err == f"error: {error}{os.linesep}"


def faults(keeping: bool) -> int:
    """Return the page faults of a process that repeatedly allocates and frees 8 MB."""
    program = f"""
import resource, numpy
from pipeline.utils.platform import keep_freed_memory
if {keeping}: keep_freed_memory()
def made(): numpy.ones(2**20)
made()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50): made()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # the threshold that glibc would adapt to
    return int(subprocess.check_output([sys.executable, "-c", program], cwd=code_deps.ROOT, env=environment))


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_freed_memory_is_reused() -> None:
    assert faults(keeping=True) * 10 < faults(keeping=False)
