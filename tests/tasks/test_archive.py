"""Unpacking archives without path escapes, zip bombs or unwanted members, and packing folders."""

import stat
import zipfile
from pathlib import Path

import pytest

from pipeline.tasks import archive
from pipeline.utils.errors import UserError


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_members_below_root_are_unpacked(tmp_path: Path) -> None:
    entries = {
        "pusht/": b"",
        "pusht/s.zarr/.zgroup": b"{}",
        "pusht/s.zarr/data/state/0.0": b"state",
        "pusht/s.zarr/data/state_extra/0.0": b"no",
        "pusht/s.zarr/data/img/0.0": b"no",
        "pusht/s.zarrx/.zgroup": b"no",
        "readme": b"no",
    }
    zipped = make_zip(tmp_path / "a.zip", entries)
    archive.unpack(zipped, tmp_path / "out", "pusht/s.zarr", (".zgroup", "data/state"))
    assert files(tmp_path / "out") == {".zgroup", "data/state/0.0"}
    assert (tmp_path / "out/data/state/0.0").read_bytes() == b"state"

    with zipfile.ZipFile(zipped) as file:
        file.extractall(tmp_path / "all")
    archive.copy_folder(tmp_path / "all/pusht/s.zarr", tmp_path / "copy", (".zgroup", "data/state"))
    assert files(tmp_path / "copy") == {".zgroup", "data/state/0.0"}


@pytest.mark.parametrize(
    "name", ["/evil", "../evil", "good/../../evil", "C:/evil", "C:evil", "..\\evil", "a\\b", "//host/share/evil"]
)
def test_path_escapes_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    zipped = make_zip(tmp_path / "a.zip", {"good": b"good", name: b"evil"})
    with pytest.raises(UserError, match="would be written outside its folder"):
        archive.unpack(zipped, tmp_path / "out")
    assert files(tmp_path) == {"a.zip"}


def test_links_are_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a device"):
        archive.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entry_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "1")
        file.writestr("./a", "2")
    with pytest.raises(UserError, match="occurs twice"):
        archive.unpack(tmp_path / "a.zip", tmp_path / "out")


def test_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1000)
    zipped = make_zip(tmp_path / "a.zip", {"a": bytes(600), "b": bytes(600)})
    with pytest.raises(UserError, match="would unpack to 1200 bytes, allowed are 1000"):
        archive.unpack(zipped, tmp_path / "out")
    archive.unpack(zipped, tmp_path / "out", members=("a",))


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "a.zip", {"a": bytes(range(256)) * 40})
    whole = zipped.read_bytes()
    zipped.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.zip: is not a whole zip archive"):
        archive.unpack(zipped, tmp_path / "out")

    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    zipped.write_bytes(flipped)
    with pytest.raises(UserError, match=r"a\.zip: is not a whole zip archive"):
        archive.unpack(zipped, tmp_path / "out2")

    make_zip(zipped, {"a": b""})
    with pytest.raises(UserError, match="holds none of the files expected under pusht"):
        archive.unpack(zipped, tmp_path / "out3", "pusht")


def test_packing_round_trips_and_is_deterministic(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        for name in ("b/c", "a") if folder == "one" else ("a", "b/c"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(name.encode())
        archive.pack(tmp_path / folder, tmp_path / f"{folder}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    archive.unpack(tmp_path / "one.zip", tmp_path / "out")
    assert files(tmp_path / "out") == {"a", "b/c"}
