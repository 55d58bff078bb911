"""Invalid input to the real programs: a one-line error, a nonzero exit code, and no partial files."""

import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.project import Project, write_checksum
from tests.tasks.http_server import serving

OF_TASK = ("--scale", "starter", "--task", "pusht")


@pytest.fixture(scope="module")
def resolved(sources: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project before its first run, with the inputs of its stages."""
    project = sources.copy(tmp_path_factory.mktemp("resolved") / "project")
    project.check("stages.resolve")
    return project


@pytest.fixture
def project(resolved: Project, tmp_path: Path) -> Project:
    return resolved.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def checkpoint(made: Project) -> Path:
    return made.root / "data" / "starter" / "pusht" / "models" / "fm-nfe1.safetensors"


def refused(project: Project, *arguments: str, **env: str) -> str:
    """Run a program that must fail; return its one line of error, without progress bars."""
    before = project.files(".")
    result = project.run(*arguments, **env)
    assert result.returncode not in (0, None), result.stdout
    lines = [line for line in result.stderr.splitlines() if line.strip() and not re.search(r"\d+%\|| \[A$", line)]
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    after = {path for path in project.files(".") if not path.endswith((".pyc", ".lock"))}
    assert {path for path in after - before.keys() if not path.startswith("data/inputs/")} == set()
    return lines[0]


def test_inspect_refuses_a_path_without_data_set(project: Project) -> None:
    assert refused(project, "stages.inspect", "data/nowhere").startswith(
        "error: data/nowhere: does not exist; expected"
    )
    assert "is of no known format" in refused(project, "stages.inspect", "dvc.yaml")


@pytest.mark.parametrize("program", ["pipeline.orchestration.repro", "stages.resolve"])
def test_unknown_setting_is_refused(project: Project, program: str) -> None:
    key = "starter.pusht.finetune.nfe1.learning_rate"
    project.params(key, 1e-3)
    line = rf"error: params\.yaml:\d+: {key}: unknown key; .*allowed: steps, batch_size, lr, .*"
    assert re.fullmatch(line, refused(project, program))


def test_unknown_scale_is_refused_by_repro(project: Project) -> None:
    line = "error: params.yaml: scale: given 'nowhere', allowed: starter, lab, paper, metaworld"
    assert refused(project, "pipeline.orchestration.repro", "nowhere") == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--scale", "nowhere", "--task", "pusht"), r"nowhere/fetch-pusht\.json: not found; `dvc repro resolve` .*"),
        (
            ("--scale", "starter", "--task", "juggling"),
            r"starter/fetch-juggling\.json: not found; .*; there are those of pusht",
        ),
    ],
)
def test_unknown_scale_or_task_is_refused_by_a_stage(project: Project, arguments: tuple[str, ...], line: str) -> None:
    assert re.fullmatch(f"error: data/inputs/{line}", refused(project, "stages.fetch", *arguments))


def test_wrong_checksum_of_demonstrations_is_refused(project: Project) -> None:
    file = project.root / "data" / "demonstrations" / "pusht_starter.npz"
    file.write_bytes(file.read_bytes() + b"!")
    line = refused(project, "stages.fetch", *OF_TASK)
    assert re.fullmatch(
        rf"error: data set pusht_starter could not be had: {re.escape(str(file))}: wrong checksum: sha256 \w{{64}}, "
        r"expected \w{64}\. Restore the file and its \.sha256 from the repository",
        line,
    )


def test_nan_in_demonstrations_is_refused(project: Project) -> None:
    file = project.root / "data" / "demonstrations" / "pusht_starter.npz"
    with np.load(file) as whole:
        arrays = dict(whole)
    arrays["action"][17, 1] = np.nan
    np.savez(file, **arrays)
    write_checksum(file)
    line = refused(project, "stages.fetch", *OF_TASK)
    assert f"{file}: episode 0: action holds NaN, infinity or numbers beyond float32, first at step 17" in line


@pytest.fixture
def from_mirror(project: Project, tmp_path: Path) -> Iterator[tuple[Project, Path]]:
    """Yield a project that needs the human demonstrations, with an empty mirror and a URL that answers 404."""
    project.params("starter.pusht.data.dataset", "pusht_human")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with serving(b"") as server:
        server.statuses = [404]
        download = project.root / "pipeline" / "tasks" / "pusht" / "__init__.py"
        text = download.read_text(encoding="utf-8")
        assert "https://diffusion-policy.cs.columbia.edu" in text
        download.write_text(text.replace("https://diffusion-policy.cs.columbia.edu", server.url), encoding="utf-8")
        yield project, mirror


def test_truncated_zip_in_the_mirror_is_refused(from_mirror: tuple[Project, Path]) -> None:
    project, mirror = from_mirror
    archive = mirror / "pusht.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("pusht/pusht_cchi_v7_replay.zarr/data/state/0.0", bytes(10_000))
    archive.write_bytes(archive.read_bytes()[:5_000])
    line = refused(project, "stages.fetch", *OF_TASK, FLOWTUNE_MIRROR=str(mirror), no_proxy="127.0.0.1")
    assert f"{archive}: is not a whole zip archive, truncated or damaged" in line
    assert line.endswith("in a folder and set FLOWTUNE_MIRROR to that folder")


def test_zarr_without_episode_ends_is_refused(from_mirror: tuple[Project, Path]) -> None:
    project, mirror = from_mirror
    store = mirror / "pusht_cchi_v7_replay.zarr"
    group = zarr.create_group(store, zarr_format=2)
    group.create_array("data/state", data=np.ones((20, 5), dtype=np.float32))
    group.create_array("data/action", data=np.ones((20, 2), dtype=np.float32))
    line = refused(project, "stages.fetch", *OF_TASK, FLOWTUNE_MIRROR=str(mirror), no_proxy="127.0.0.1")
    assert f"{store}: array meta/episode_ends is missing;" in line


def test_stage_without_its_input_is_refused(project: Project) -> None:
    line = "error: data/starter/pusht/demonstrations: not found; it is made by an earlier stage, run `dvc repro`"
    assert refused(project, "stages.prepare", *OF_TASK) == line


def test_checkpoint_of_another_architecture_is_refused(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    project.params("starter.pusht.net.width", 32)
    line = refused(project, "stages.train", *OF_TASK, "--method", "fm", "--nfe", "1")
    assert line == (
        "error: data/starter/pusht/base.safetensors: checkpoint of another architecture: its net.width is 16, "
        "params.yaml asks for 32"
    )


def test_nfe_without_a_recipe_is_refused(made: Project) -> None:
    line = refused(made, "stages.train", *OF_TASK, "--method", "fm", "--nfe", "7")
    assert line.startswith("error: data/inputs/starter/finetune-pusht-7.json: not found; ")
    assert line.endswith("; there are those of pusht-1, pusht-2")


def test_file_in_place_of_the_reports_folder_is_refused(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    shutil.rmtree(project.root / "reports")
    (project.root / "reports").touch()
    problem = "reports: is a file, but a folder is needed there; remove or rename it"
    assert refused(project, "stages.train", *OF_TASK, "--method", "fm") == f"error: {problem}"
    assert refused(project, "pipeline.orchestration.repro") == f"error: {project.root}/{problem}"


EVALUATE = ("stages.evaluate", "--nfe", "1")
UNKNOWN_EVALUATION = "--evaluation: given 'pusht_c', allowed for pusht: pusht_a, pusht_b"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--evaluation", "pusht_c", "--checkpoint", "CHECKPOINT"), UNKNOWN_EVALUATION),
        (
            ("--evaluation", "pusht_b", *OF_TASK, "--method", "fm"),
            "--evaluation: not an option of a stage; see --help",
        ),
        (
            ("--evaluation", "pusht_b", "--checkpoint", "CHECKPOINT", "--disturbed"),
            "--disturbed: not an option of --checkpoint and --evaluation; see --help",
        ),
        (
            ("--scale", "starter", "--task", "digits", "--method", "i_cfm"),
            "--nfe, --row and --disturbed: not options of digits, which is of images; give --method",
        ),
        (("--evaluation", "pusht_b", "--checkpoint", "nothing.safetensors"), "nothing.safetensors: no such checkpoint"),
        (
            ("--evaluation", "pusht_b", "--checkpoint", "CHECKPOINT", "--seeds", "100000-100010"),
            r"--seeds: given '100000-100010', allowed: FIRST:END such as 100000:100500, below 2\*\*32",
        ),
        (
            ("--evaluation", "pusht_b", "--checkpoint", "CHECKPOINT", "--repeats", "0"),
            "--nfe, --repeats and --num-envs: allowed: 1 or more; --workers: 0 or more",
        ),
        (("--evaluation", "pusht_b", "--checkpoint", "params.yaml"), "params.yaml: no readable safetensors file: .*"),
    ],
)
def test_invalid_evaluation_arguments_are_refused(
    project: Project, checkpoint: Path, arguments: tuple[str, ...], line: str
) -> None:
    given = [str(checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
    assert re.fullmatch(f"error: {line}", refused(project, *EVALUATE, *given))


def test_invalid_demonstration_seeds_are_refused(project: Project, checkpoint: Path) -> None:
    arguments = ("--checkpoint", str(checkpoint), "--seeds", "100000:100010", "--out", "demonstrations.npz")
    line = refused(project, "stages.demonstrate", *arguments)
    assert line.startswith(
        "error: --seeds: given '100000:100010', allowed: FIRST:END such as 300000:300500, from 300000"
    )
