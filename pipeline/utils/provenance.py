"""Where a result comes from: files, code and machine."""

import getpass
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.utils import platform
from pipeline.utils.hardware import cores


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files, folders walked; the order of ``paths`` does not matter.

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


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(path)
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def git_commit(root: Path) -> str:
    """The commit checked out in ``root``, or ``none`` where there is no repository or no commit."""
    return _git(root, "rev-parse", "HEAD") or "none"


def git_dirty(root: Path) -> bool:
    """Whether tracked files in ``root`` differ from that commit."""
    return bool(_git(root, "status", "--porcelain", "--untracked-files=no"))


def file_at(root: Path, commit: str, name: str) -> str | None:
    """The text of the file ``name`` in a commit; None where git cannot say."""
    return _git(root, "show", f"{commit}:{name}") or None


def user() -> str:
    """The name of whoever runs this program; ``unknown`` where the system has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 has the latter
        return "unknown"


def hardware() -> str:
    """One line: processor, cores and, if the program uses torch, its threads."""
    parts = [platform.processor(), f"{cores()} cores"]
    if torch := sys.modules.get("torch"):  # only if the stage uses it
        parts.append(f"{torch.get_num_threads()} torch threads")
    return ", ".join(parts)


def _git(root: Path, *arguments: str) -> str:
    if not (root / ".git").exists():  # one in a folder above is not of this code
        return ""
    # What git refuses in a repository of another user's is to run its hooks; the code in it is at work already.
    command = ["git", "-c", f"safe.directory={root}", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:  # there is no git
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
