"""Fetching data sets: complete from the first valid source, or not at all."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.tasks.datasets import Dataset, Publication
from pipeline.tasks.download import fetch
from pipeline.tasks.loader import load_task, own_tasks
from pipeline.tasks.pusht import STATE_MEMBERS
from pipeline.tasks.pusht.files import read_pusht
from pipeline.utils.errors import UserError
from tests.tasks.http_server import Server, serving

ROOT = "toy/toy.zarr"
PUSHT = load_task("pusht").datasets


def make_store(path: Path, *, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    group = zarr.create_group(path, zarr_format=2)
    group.create_array("data/state", data=rng.uniform(50, 450, (20, 5)).astype(np.float32))
    group.create_array("data/action", data=rng.uniform(50, 450, (20, 2)).astype(np.float32))
    group.create_array("data/img", data=np.ones((20, 8), dtype=np.float32))
    group.create_array("meta/episode_ends", data=np.array([8, 20]))
    return path


def zip_store(store: Path, path: Path, root: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted(store.rglob("*")):
            file.write(member, Path(root) / member.relative_to(store))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "made" / "toy.zarr")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    return folder


@pytest.fixture
def server(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(zip_store(store, tmp_path / "official.zip", ROOT).read_bytes()) as server:
        yield server


@pytest.fixture
def toy(store: Path, tmp_path: Path, server: Server) -> Dataset:
    """Return a data set published as a zip, as a folder, and as another zip that also has a URL."""
    zipped = zip_store(store, tmp_path / "made" / "toy.zarr.zip")
    return Dataset(
        title="",
        licence="",
        citation="",
        read=read_pusht,
        publications=(
            Publication("toy.zarr.zip", sha256=hashlib.sha256(zipped.read_bytes()).hexdigest()),
            Publication("toy.zarr"),
            Publication("toy.zip", root=ROOT, url=f"{server.url}/toy.zip"),
        ),
        members=STATE_MEMBERS,
        content_sha256=read_pusht(store).content_sha256(),
    )


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "out" / "demonstrations"


def no_sleep(_: float) -> None:
    pass


def check_fetched(destination: Path, data_set: Dataset) -> None:
    assert read_pusht(destination).content_sha256() == data_set.content_sha256
    assert not (destination / "data" / "img").exists()
    assert list(destination.parent.iterdir()) == [destination], "no other files remain"


@pytest.mark.parametrize("form", ["toy.zarr.zip", "toy.zarr", "toy.zip"])
def test_every_published_form_is_taken_from_the_mirror(
    toy: Dataset, store: Path, mirror: Path, server: Server, destination: Path, form: str
) -> None:
    if form == "toy.zarr":
        shutil.copytree(store, mirror / form)
    elif form == "toy.zip":
        zip_store(store, mirror / form, ROOT)
    else:
        shutil.copy(store.with_name(form), mirror / form)
    assert fetch("toy", toy, destination, mirror) == destination
    check_fetched(destination, toy)
    assert server.ranges == []


@pytest.mark.parametrize("with_mirror", [False, True])
def test_download_is_the_fallback(
    toy: Dataset, mirror: Path, server: Server, destination: Path, with_mirror: bool
) -> None:
    server.cut_after = [300]
    fetch("toy", toy, destination, mirror if with_mirror else None, no_sleep)
    check_fetched(destination, toy)
    assert server.ranges == [None, "bytes=300-"]


def test_leftovers_of_a_killed_process_are_replaced(toy: Dataset, store: Path, mirror: Path, destination: Path) -> None:
    shutil.copytree(store, mirror / "toy.zarr")
    for name in ("demonstrations", ".demonstrations.fresh", ".demonstrations.former"):
        shutil.copytree(store, destination.with_name(name))
    fetch("toy", toy, destination, mirror)
    check_fetched(destination, toy)


def test_invalid_mirror_files_are_skipped_and_reported(
    toy: Dataset, store: Path, mirror: Path, server: Server, destination: Path
) -> None:
    zip_store(make_store(mirror / "other", seed=1), mirror / "toy.zarr.zip")
    shutil.copytree(mirror / "other", mirror / "toy.zarr")
    whole = zip_store(store, mirror / "toy.zip", ROOT).read_bytes()
    (mirror / "toy.zip").write_bytes(whole[:-100])
    server.statuses = [404]
    with pytest.raises(UserError) as caught:
        fetch("toy", toy, destination, mirror, no_sleep)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{mirror}/toy.zarr.zip: wrong checksum: sha256" in message
    assert f"{mirror}/toy.zarr: holds other demonstrations: content sha256" in message
    assert f"{mirror}/toy.zip: is not a whole zip archive" in message
    assert f"{server.url}/toy.zip: HTTP 404 Not Found" in message
    assert "Put one of toy.zarr.zip, toy.zarr, toy.zip in a folder and set FLOWTUNE_MIRROR to that folder" in message
    assert list(destination.parent.iterdir()) == []

    fetch("toy", toy, destination, mirror, no_sleep)
    check_fetched(destination, toy)


def test_failed_fetch_keeps_the_previous_result(toy: Dataset, server: Server, destination: Path) -> None:
    fetch("toy", toy, destination)
    server.statuses = [403]
    with pytest.raises(UserError, match=r"no mirror \(FLOWTUNE_MIRROR is not set\); .*HTTP 403"):
        fetch("toy", toy, destination)
    check_fetched(destination, toy)


def test_invalid_download_is_discarded(toy: Dataset, server: Server, destination: Path) -> None:
    right, server.content = server.content, b"<html>log in first</html>"
    with pytest.raises(UserError, match="is not a whole zip archive"):
        fetch("toy", toy, destination)
    assert list(destination.parent.iterdir()) == []
    server.content = right
    fetch("toy", toy, destination)
    check_fetched(destination, toy)


@pytest.mark.parametrize(
    ("defect", "message"),
    [("episode_ends", "array meta/episode_ends is missing"), ("nan", "episode 0: action holds NaN")],
)
def test_defects_in_the_data_name_the_source(
    toy: Dataset, store: Path, mirror: Path, server: Server, destination: Path, defect: str, message: str
) -> None:
    broken = shutil.copytree(store, mirror / "toy.zarr")
    if defect == "nan":
        zarr.open_array(broken / "data" / "action", mode="a")[3, 0] = np.nan
    else:
        shutil.rmtree(broken / "meta" / "episode_ends")
    server.statuses = [404]
    with pytest.raises(UserError, match=f"{broken}: {message}"):
        fetch("toy", toy, destination, mirror)
    assert list(destination.parent.iterdir()) == []


def test_archive_with_path_escape_writes_nothing(
    toy: Dataset, mirror: Path, server: Server, destination: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(mirror / "toy.zip", "w") as file:
        file.writestr("../../evil", "evil")
    server.statuses = [404]
    with pytest.raises(UserError, match=r"entry '\.\./\.\./evil' would be written outside its folder"):
        fetch("toy", toy, destination, mirror)
    assert not list(tmp_path.rglob("evil"))


@pytest.fixture
def shipped(tmp_path: Path) -> Dataset:
    path = tmp_path / "shipped.npz"
    np.savez(path, state=np.ones((4, 5), np.float32), action=np.ones((4, 2), np.float32), episode_ends=[4], seed=[0])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("shipped.npz.sha256").write_text(f"{digest}  shipped.npz\n", encoding="utf-8")
    return replace(PUSHT["pusht_starter"], shipped=path)


def test_shipped_set_is_copied_after_its_checksum(shipped: Dataset, destination: Path) -> None:
    path = shipped.shipped
    assert path
    fetch("toy", shipped, destination)
    assert destination.read_bytes() == path.read_bytes()
    assert read_pusht(destination).n_episodes == 1

    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=rf"{path}: wrong checksum: .*Restore the file"):
        fetch("toy", shipped, destination)
    path.with_name("shipped.npz.sha256").unlink()
    with pytest.raises(UserError, match=r"shipped\.npz\.sha256.*Restore the file"):
        fetch("toy", shipped, destination)


@pytest.mark.skipif("FLOWTUNE_MIRROR" not in os.environ, reason="needs the public data: set FLOWTUNE_MIRROR")
def test_public_set_is_fetched_from_the_mirror(destination: Path) -> None:
    fetch("pusht_human", PUSHT["pusht_human"], destination, Path(os.environ["FLOWTUNE_MIRROR"]))
    check_fetched(destination, PUSHT["pusht_human"])


SHIPPED = [(name, data) for task in own_tasks() for name, data in load_task(task).datasets.items() if data.shipped]


@pytest.mark.parametrize(("name", "data_set"), SHIPPED, ids=[name for name, _ in SHIPPED])
def test_shipped_sets_are_small_and_complete(name: str, data_set: Dataset, destination: Path) -> None:
    assert data_set.shipped and data_set.shipped.stat().st_size <= 3_000_000
    demonstrations = data_set.read(fetch(name, data_set, destination))
    assert demonstrations.n_episodes == data_set.episodes
    assert len(demonstrations.state) == len(demonstrations.action) == demonstrations.episode_ends[-1]
