"""All stages of Table 1 on the real CIFAR-10, with a tiny net and few training steps."""

import os
from pathlib import Path

import pandas as pd
import pytest

from pipeline.tasks.images import Images, load_images
from tests.project import Project
from tests.tiny_project import make_project

MIRROR = Path(os.environ.get("FLOWTUNE_MIRROR", "absent"))
pytestmark = pytest.mark.skipif(
    not (MIRROR / "cifar10_train.npz").exists(), reason="FLOWTUNE_MIRROR names no folder with cifar10_train.npz"
)
TINY_NET = {"kind": "unet2d", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "head_channels": 8}
TINY_NET |= {"groups": 4, "dropout": 0.1, "time_scale": 1000.0}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = make_project(tmp_path / "project")
    settings = project.value("starter.digits")
    settings["data"] = {"dataset": "cifar10", "flip": True}
    settings["net"] = TINY_NET
    settings["pretrain"] |= {"steps": 12, "warmup": 1}
    settings["select"]["latest"] = 8
    settings["residual"]["steps"] = 5
    project.params("starter.cifar10", settings)
    project.params("starter.lists.images", ["cifar10"])
    project.params("images", ["cifar10"])
    return project


def keep_some(path: Path) -> None:
    """Keep 1000 of the fetched images, all JPEG decodes among them, since each stage reads all images."""
    images = load_images(path)
    assert images.note == "73 of 50 000 training images are JPEG decodes"
    kept = images.exact.argsort(kind="stable")[:1000]
    Images(images.images[kept], images.labels[kept], images.exact[kept], images.name).save(path)


def test_cifar10_stages_make_table_1_and_shipped_checkpoints(project: Project) -> None:
    def run(stage: str, *arguments: str) -> str:
        where = ("--scale", "starter", "--task", "cifar10")
        return project.check(f"stages.{stage}", *where, *arguments, FLOWTUNE_MIRROR=str(MIRROR)).stdout

    run("fetch")
    keep_some(project.root / "data" / "starter" / "cifar10" / "fetched" / "images.npz")
    run("train", "--method", "extractor")
    run("train", "--method", "i_cfm")
    run("select")
    for nfe in ("1", "2"):
        run("train", "--method", "ft_fm", "--nfe", nfe)
    run("train", "--method", "resft_fm")
    for method in ("i_cfm", "ft_fm", "resft_fm"):
        run("evaluate", "--method", method)
    run("report", "tabulate_images")
    run("report", "draw_images")

    reports = project.root / "reports" / "starter"
    table = pd.read_csv(reports / "table1.csv")
    assert set(table["method"]) == {"i_cfm", "ft_fm", "resft_fm"} and set(table["dataset"]) == {"cifar10"}
    text = (reports / "table1.md").read_text(encoding="utf-8")
    assert "73 of 1 000 training images are JPEG decodes" in text
    assert "DDPM" in text.partition("issing")[2]
    assert (reports / "figure_e2.png").stat().st_size > 0

    made = project.root / "data" / "starter" / "cifar10"
    before = {path: path.read_bytes() for name in ("i_cfm", "ft_fm") for path in sorted((made / name).iterdir())}
    run("ship")
    for path in before:
        path.unlink()
    for arguments in (("--method", "i_cfm"), ("--method", "ft_fm", "--nfe", "1")):
        assert "taken in place of training" in run("train", *arguments)
    there = {path: path.read_bytes() for path in before if path.exists()}
    assert there == {path: content for path, content in before.items() if path.name != "nfe2.safetensors"}
    of_table = pd.read_csv(reports / "images" / "cifar10-i_cfm.csv").query("solver == 'euler-1' or nfe == 1").iloc[0]
    checkpoint = "data/checkpoints/starter/cifar10/i_cfm/step-0000012.safetensors"
    project.check("stages.evaluate", "--checkpoint", checkpoint, "--solver", "euler-1", "--out", "distances.csv")
    again = pd.read_csv(project.root / "distances.csv").iloc[0]
    assert (again["checkpoint"], again["distance"]) == (of_table["checkpoint"], of_table["distance"])
