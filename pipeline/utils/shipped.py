"""Reuse trained models shipped in the repository if the settings and data that made them are the same.

``data/checkpoints/<scale>/<task>`` holds the files that a stage made; ``<stage>.json`` holds its settings and data. The
stage's program copies the files instead of training; DVC then finds the outputs of its lock. Code is not compared. A
change of code that alters a result must therefore remove the stage's ``.json``, so that the stage trains anew.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.utils.atomic import make_folder, write_bytes, write_text
from pipeline.utils.errors import UserError
from pipeline.utils.provenance import git_commit, hardware, hash_files

NOTES = Path(".flowtune", "made")
MAX_BYTES = 8_000_000
"""Largest size of a shipped file."""


@dataclass(frozen=True)
class Shipment:
    """Outputs of a stage, with the settings and files that they are made from.

    Attributes:
        scale, task: identifiers. stage: its name within them, such as ``pretrain_images-i_cfm``.
        settings: all settings that the result depends on. deps, outs: files and folders read and written.
    """

    scale: str
    task: str
    stage: str
    settings: Mapping[str, Any]
    deps: Sequence[Path]
    outs: Sequence[Path]

    def unpack(self, main: bool = True) -> bool:
        """Copy the shipped outputs into place if they were made from these settings and data; return True if so.

        Prints one line: that they were taken, or what differs.

        Args:
            main: whether this process writes; the other processes only return the same answer.
        """
        index = folder(self.scale, self.task) / f"{self.stage}.json"
        if not index.exists():
            return False
        shipped = json.loads(index.read_text(encoding="utf-8"))
        if differing := sorted(_differing(shipped["made_of"], self._made_of())):
            print(f"{index}: not taken, of another {', '.join(differing)}")
            return False
        damaged = [name for name, file in shipped["files"].items() if _sha256(Path(file["from"])) != file["sha256"]]
        if damaged:
            print(f"{index}: not taken, {damaged[0]} is damaged or missing")
            return False
        if not main:
            return True
        for out in self.outs:
            if out.is_dir():
                shutil.rmtree(out)
        for name, file in shipped["files"].items():
            make_folder(Path(name).parent)
            write_bytes(Path(name), Path(file["from"]).read_bytes())
        print(f"{index}: taken in place of training; made by commit {shipped['commit'][:12]} on {shipped['hardware']}")
        return True

    def note(self) -> None:
        """Record for ``ship`` the settings and data that the new outputs were made from."""
        files = {path.as_posix(): {"sha256": _sha256(path)} for path in _files(self.outs)}
        content = {
            "made_of": self._made_of(),
            "commit": git_commit(Path()),
            "hardware": hardware(),
            "files": files,
        }
        write_text(NOTES / self.scale / self.task / f"{self.stage}.json", json.dumps(content, indent=1, sort_keys=True))

    def _made_of(self) -> dict[str, Any]:
        settings = json.loads(json.dumps(self.settings, default=str))
        return {"settings": settings, "data": hash_files(self.deps)}


def folder(scale: str, task: str) -> Path:
    """Return the folder of the shipped files of a task."""
    return Path("data", "checkpoints", scale, task)


def ship(scale: str, task: str) -> Iterator[tuple[str, list[Path]]]:
    """Copy the outputs of ``task``'s stages into the repository; yield each stage with the files added for it.

    A file that is there already under another name is not copied again.

    Raises:
        UserError: a file has changed since its stage made it, or is larger than ``MAX_BYTES``.
    """
    there = {_sha256(path): path for path in _files([folder(scale, task)])} if folder(scale, task).exists() else {}
    for note in sorted((NOTES / scale / task).glob("*.json")):
        content = json.loads(note.read_text(encoding="utf-8"))
        added: list[Path] = []
        for name, file in content["files"].items():
            path = Path(name)
            if _sha256(path) != file["sha256"]:
                raise UserError(f"{name}: given another file than {note.stem} made, allowed: that one; run it again")
            if path.stat().st_size > MAX_BYTES:
                given = path.stat().st_size
                raise UserError(f"{name}: given {given} bytes, allowed: at most {MAX_BYTES} in a file that is shipped")
            if file["sha256"] not in there:
                place = folder(scale, task) / _place(path)
                write_bytes(place, path.read_bytes())
                there[file["sha256"]] = place
                added.append(place)
            file["from"] = there[file["sha256"]].as_posix()
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        write_text(folder(scale, task) / f"{note.stem}.json", text)
        yield note.stem, added


def _place(out: Path) -> Path:
    """Return a path among the shipped files: data/<scale>/<task>/x → x, reports/<scale>/x → reports/x."""
    return Path(*out.parts[3:]) if out.parts[0] == "data" else Path("reports", *out.parts[2:])


def _files(paths: Sequence[Path]) -> list[Path]:
    return sorted(f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys in which two trees differ."""
    for key in {**one, **other}:
        mine, others = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(others, dict):
            yield from _differing(mine, others, f"{prefix}{key}.")
        elif mine != others:
            yield f"{prefix}{key}"
