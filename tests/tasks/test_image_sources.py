"""Fetching image data sets: equal from every source; invalid and malicious files are refused."""

import hashlib
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks.cifar10 import FOLDER, read_archive, read_batch, read_folder
from pipeline.tasks.image_sources import IMAGE_SETS, Published, fetch_images
from pipeline.tasks.images import load_images
from pipeline.utils.errors import UserError
from tests.tasks.cifar10_files import make_batches, make_images, pickled, string, write_archive, write_folder
from tests.tasks.http_server import Server, serving

ARCHIVE = "cifar-10-python.tar.gz"
NPZ = "cifar10_train.npz"
BATCHES = make_batches()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


MD5S = {name: md5(content) for name, content in BATCHES.items()}


def archive_members(batches: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """Return members in reverse order, with the other files of the official archive."""
    members = [(f"{FOLDER}/{name}", content) for name, content in reversed(batches.items())]
    return [(f"{FOLDER}/batches.meta", b"no pickle"), *members, (f"{FOLDER}/test_batch", b"no pickle")]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "official.tar.gz", archive_members(BATCHES))


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    return folder


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "out" / "images.npz"


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve the archive, and let ``cifar10`` be the small set in it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(archive.read_bytes()) as server:
        published = (
            Published(ARCHIVE, partial(read_archive, md5=md5(server.content), batches=MD5S), f"{server.url}/{ARCHIVE}"),
            Published(FOLDER, partial(read_folder, batches=MD5S)),
            Published(NPZ, load_images),
        )
        small = replace(IMAGE_SETS["cifar10"], shape=(20, 3, 32, 32), per_class=2, published=published)
        monkeypatch.setitem(IMAGE_SETS, "cifar10", small)
        yield server


def no_sleep(_: float) -> None:
    pass


def check_fetched(destination: Path) -> None:
    fetched, (images, labels) = load_images(destination), make_images()
    np.testing.assert_array_equal(fetched.images, images, strict=True)
    np.testing.assert_array_equal(fetched.labels, labels, strict=True)
    assert fetched.exact.all()
    assert fetched.name == "cifar10"
    assert list(destination.parent.iterdir()) == [destination], "no other files remain"


def test_every_source_gives_the_same_bytes(
    archive: Path, mirror: Path, server: Server, destination: Path, tmp_path: Path
) -> None:
    images, labels = make_images()
    digests = set()
    for form in (ARCHIVE, FOLDER, NPZ):
        folder = mirror / form
        folder.mkdir()
        if form == ARCHIVE:
            (folder / form).write_bytes(archive.read_bytes())
        elif form == FOLDER:
            write_folder(folder / form, BATCHES)
        else:
            np.savez_compressed(folder / form, images=images, labels=labels)
        fetch_images("cifar10", destination, folder)
        check_fetched(destination)
        digests.add(md5(destination.read_bytes()))
    assert server.ranges == [], "without network"
    server.cut_after = [300]
    fetch_images("cifar10", destination, tmp_path / "no folder", no_sleep)
    check_fetched(destination)
    assert server.ranges == [None, "bytes=300-"]
    assert len(digests | {md5(destination.read_bytes())}) == 1


def test_invalid_sources_are_skipped_and_reported(mirror: Path, server: Server, destination: Path) -> None:
    (mirror / ARCHIVE).write_bytes(server.content[:-50])
    write_folder(mirror / FOLDER, BATCHES | {"data_batch_3": BATCHES["data_batch_2"]})
    images, labels = make_images()
    np.savez(mirror / NPZ, images=images, labels=np.zeros_like(labels))
    server.statuses = [404]
    with pytest.raises(UserError) as caught:
        fetch_images("cifar10", destination, mirror, no_sleep)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{mirror}/{ARCHIVE}: wrong checksum: md5" in message
    assert f"{mirror}/{FOLDER}: data_batch_3: wrong checksum: md5" in message
    assert (
        f"{mirror}/{NPZ}: labels: given [20, 0, 0, 0, 0, 0, 0, 0, 0, 0] of the classes, allowed: 2 of each" in message
    )
    assert f"{server.url}/{ARCHIVE}: HTTP 404 Not Found" in message
    assert message.endswith(f"Put one of {ARCHIVE}, {FOLDER}, {NPZ} in a folder and set FLOWTUNE_MIRROR to that folder")
    assert list(destination.parent.iterdir()) == []

    np.savez(mirror / NPZ, images=images[:10], labels=labels[:10])
    server.statuses = [404]
    with pytest.raises(UserError, match=r"images: given shape \(10, 3, 32, 32\), allowed: \(20, 3, 32, 32\)"):
        fetch_images("cifar10", destination, mirror, no_sleep)
    fetch_images("cifar10", destination, mirror, no_sleep)
    check_fetched(destination)
    server.statuses = [403]
    with pytest.raises(UserError, match=r"no mirror \(FLOWTUNE_MIRROR is not set\); .*HTTP 403"):
        fetch_images("cifar10", destination)
    check_fetched(destination)


@pytest.mark.parametrize("size", [0, 10, 30_000])
def test_truncated_archive_is_refused(archive: Path, size: int) -> None:
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(UserError, match=f"^{archive}: is not a whole tar.gz archive, truncated or damaged"):
        read_archive(archive, md5(archive.read_bytes()), MD5S)


def test_damaged_archive_is_refused(archive: Path) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[:20_000] + bytes(200) + whole[20_200:])
    with pytest.raises(UserError, match=f"^{archive}: "):
        read_archive(archive, md5(archive.read_bytes()), MD5S)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(f"{FOLDER}/data_batch_1", b"-> /etc/passwd")], "refused: cifar-10-batches-py/data_batch_1 is no plain file"),
        (2 * [(f"{FOLDER}/data_batch_1", BATCHES["data_batch_1"])], "refused: .*there twice"),
        ([("../data_batch_1", BATCHES["data_batch_1"])], "data_batch_1 is missing in it"),
    ],
)
def test_archive_with_unexpected_members_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = write_archive(tmp_path / "strange.tar.gz", members)
    with pytest.raises(UserError, match=message):
        read_archive(path, md5(path.read_bytes()), MD5S)
    assert sorted(tmp_path.rglob("*")) == [folder, path], "nothing is unpacked"


def test_oversized_batch_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tasks.cifar10.MAX_BATCH_BYTES", 1000)
    with pytest.raises(UserError, match="too large"):
        read_archive(archive, md5(archive.read_bytes()), MD5S)


class Malicious:
    """Runs code when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    evil = pickle.dumps({"data": Malicious(tmp_path / "evil"), "labels": [0]}, protocol=2)
    with pytest.raises(UserError, match=r"^here: is not a batch.*refused: it asks for posix\.mkdir"):
        read_batch(evil, "here")
    assert not list(tmp_path.iterdir())
    pickle.loads(evil)
    assert (tmp_path / "evil").is_dir(), "the same pickle is harmful when pickle reads it"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"\x80\x02cbuiltins\neval\n(" + string(b"1") + b"tR.", "it asks for builtins.eval"),
        (b"\x80\x02cnumpy\nload\n(" + string(b"x") + b"tR.", "it asks for numpy.load"),
        (pickled(np.zeros((1, 3072), np.uint8), [0], kind=b"O8"), "it asks for an array of b'O8'"),
        (BATCHES["data_batch_1"][:-30], "is not a batch of CIFAR-10"),
        (b"", "is not a batch of CIFAR-10 .EOFError"),
        (b"\x80\x02K\x01.", "is not a batch of CIFAR-10 .TypeError"),
        (pickled(np.zeros((2, 3072), np.uint8), [1]), r"data: given uint8 \(2, 3072\), allowed: uint8, a row of 3072"),
        (pickled(np.zeros((1, 3000), np.uint8), [1]), r"data: given uint8 \(1, 3000\), allowed"),
        (pickled(np.zeros((1, 3072), np.uint8), [10]), r"labels: given int64 \(1,\), allowed: .*0 to 9"),
    ],
)
def test_invalid_batches_are_refused(batch: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{message}") as caught:
        read_batch(batch, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:dtype")  # of numpy, about align=0, as in the official files
def test_batches_are_read_as_by_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class Small(datasets.CIFAR10):  # type: ignore[name-defined, misc]
        train_list = [[name, digest] for name, digest in MD5S.items()]  # noqa: RUF012
        test_list = []  # noqa: RUF012

        def _load_meta(self) -> None:
            pass

    peer = Small(root=str(write_folder(tmp_path / FOLDER, BATCHES).parent))
    ours = read_folder(tmp_path / FOLDER, MD5S)
    np.testing.assert_array_equal(ours.images.transpose(0, 2, 3, 1), peer.data)
    assert ours.labels.tolist() == peer.targets


def test_digits_need_no_network_and_are_lossless(destination: Path) -> None:
    from sklearn.datasets import load_digits

    fetch_images("digits", destination)
    first = destination.read_bytes()
    fetch_images("digits", destination)
    assert destination.read_bytes() == first
    digits, original = load_images(destination), load_digits()
    assert (digits.images.min(), digits.images.max(), digits.note) == (0, 255, "")
    np.testing.assert_array_equal(np.round(digits.images[:, 0] / 255 * 16), original.images)
    np.testing.assert_array_equal(digits.labels, original.target)


def test_unknown_data_set_is_refused(destination: Path) -> None:
    with pytest.raises(UserError, match="data set 'mnist' is unknown; allowed are digits, cifar10"):
        fetch_images("mnist", destination)


@pytest.mark.skipif(
    not (Path(os.environ.get("FLOWTUNE_MIRROR", "")) / NPZ).is_file(),
    reason=f"needs the public data: set FLOWTUNE_MIRROR to a folder with {NPZ}",
)
def test_real_cifar10_is_fetched_from_the_mirror(destination: Path) -> None:
    fetch_images("cifar10", destination, Path(os.environ["FLOWTUNE_MIRROR"]))
    real = load_images(destination)
    assert real.images.shape == (50_000, 3, 32, 32)
    assert real.note == "73 of 50 000 training images are JPEG decodes"
    mean = [real.images[:, channel].mean() / 255 for channel in range(3)]
    np.testing.assert_allclose(mean, [0.49140, 0.48216, 0.44653], atol=1e-5)
