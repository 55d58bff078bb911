"""Identify the origin of a result: hashes of files, the git commit and the hardware."""

import getpass
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.utils import platform
from pipeline.utils.atomic import write_text
from pipeline.utils.hardware import cores


def hash_files(paths: Iterable[Path]) -> str:
    """Hash names and contents of files by SHA-256, folders with all that is in them, in any order of ``paths``.

    Raises:
        FileNotFoundError: one of ``paths`` does not exist.
    """
    return hash_of(file_digests(paths))


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, folders walked, in the order of their names; raises as ``hash_files``."""
    digests = {}
    for file in sorted({file for path in paths for file in _files(Path(path))}):
        with file.open("rb") as stream:
            digests[file] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def hash_of(digests: Mapping[Path, str]) -> str:
    """The hash that ``hash_files`` gives files of these names and digests."""
    whole = hashlib.sha256()
    for file in sorted(digests):
        whole.update(f"{file.as_posix()}\0".encode())
        whole.update(bytes.fromhex(digests[file]))
    return whole.hexdigest()


def write_checksum(path: Path) -> None:
    """Write ``<path>.sha256`` in the form that `sha256sum --check` reads."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_text(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(path)
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def git_commit(root: Path) -> str:
    """Return the commit checked out in ``root``; ``none`` if there is no repository or no commit."""
    return git(root, "rev-parse", "HEAD") or "none"


def git_dirty(root: Path) -> bool:
    """Tell whether tracked files in ``root`` differ from the commit checked out."""
    return bool(git(root, "status", "--porcelain", "--untracked-files=no"))


def file_at(root: Path, commit: str, name: str) -> str | None:
    """Return the text of the file ``name`` in a commit; None if git cannot find it."""
    return git(root, "show", f"{commit}:{name}") or None


def user() -> str:
    """The name of whoever runs this program; ``unknown`` where the system has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 has the latter
        return "unknown"


def hardware() -> str:
    """Describe the hardware in one line: processor, cores and, if the program uses torch, its threads."""
    parts = [platform.processor(), f"{cores()} cores"]
    if torch := sys.modules.get("torch"):  # only if the stage uses it
        parts.append(f"{torch.get_num_threads()} torch threads")
    return ", ".join(parts)


def git(root: Path, *arguments: str) -> str | None:
    """Return what git prints in the repository at ``root``, without trailing space; None if git fails."""
    if not (root / ".git").exists():  # a repository in a folder above is not this code's
        return None
    # git refuses a repository of another user because it could hold harmful hooks; its code already runs here anyway
    command = ["git", "-c", f"safe.directory={root}", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return result.stdout.rstrip() if result.returncode == 0 else None
