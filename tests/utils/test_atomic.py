"""Files are whole or absent, whatever happens while they are written."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.utils.atomic import make_folder, remove_leftovers, replacing, write_bytes, write_text
from pipeline.utils.errors import UserError


def test_writing_creates_missing_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "text.csv", "é,1\n")
    write_bytes(tmp_path / "a" / "data.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text.csv").read_bytes() == "é,1\n".encode()
    assert (tmp_path / "a" / "data.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "data.bin").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("before", [None, "before"])
def test_failed_write_leaves_only_the_old_file(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "out.json"
    if before is not None:
        path.write_text(before, encoding="utf-8")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == (
        {"out.json": before} if before else {}
    )


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_text("old", encoding="utf-8")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("", encoding="utf-8")
    line = f"{tmp_path}/reports: is a file, but a folder is needed there; remove or rename it"
    for folder in (tmp_path / "reports", tmp_path / "reports" / "starter"):
        with pytest.raises(UserError) as raised:
            make_folder(folder)
        assert str(raised.value) == line
        with pytest.raises(UserError) as raised:
            write_text(folder / "table2.csv", "")
        assert str(raised.value) == line


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table2.csv").mkdir()
    with pytest.raises(UserError, match=r"table2\.csv: is a folder, but a file is to be written there"):
        write_text(tmp_path / "table2.csv", "")


def test_only_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pipeline.utils.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    path, others = tmp_path / "table[1].csv", [tmp_path / ".table[1].md", tmp_path / ".table.12345678.csv"]
    for other in (path, *others):
        other.write_text("stays", encoding="utf-8")
    subprocess.run([sys.executable, "-c", program, path], cwd=Path(__file__).parents[2], check=False)
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])
