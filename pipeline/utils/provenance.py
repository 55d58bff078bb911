"""Where a result comes from: files, code and machine."""

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.utils import platform
from pipeline.utils.hardware import cores


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files, folders walked; the order of ``paths`` does not matter.

    Raises:
        FileNotFoundError: one of ``paths`` does not exist.
    """
    digest = hashlib.sha256()
    for file in sorted({file for path in paths for file in _files(Path(path))}):
        digest.update(f"{file.as_posix()}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(path)
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def git_commit(root: Path) -> str:
    """The commit checked out in ``root``, or ``none`` where there is no repository or no commit."""
    return git(root, "rev-parse", "HEAD") or "none"


def git_dirty(root: Path) -> bool:
    """Whether tracked files in ``root`` differ from that commit."""
    return bool(git(root, "status", "--porcelain", "--untracked-files=no"))


def file_at(root: Path, commit: str, name: str) -> str | None:
    """The text of the file ``name`` in a commit; None where git cannot say."""
    return git(root, "show", f"{commit}:{name}") or None


def hardware() -> str:
    """One line: processor, cores and, if the program uses torch, its threads."""
    parts = [platform.processor(), f"{cores()} cores"]
    if torch := sys.modules.get("torch"):  # only if the stage uses it
        parts.append(f"{torch.get_num_threads()} torch threads")
    return ", ".join(parts)


def git(root: Path, *arguments: str) -> str | None:
    """What git prints in the repository at ``root``, without the last line's end; None where it cannot say."""
    if not (root / ".git").exists():  # one in a folder above is not of this code
        return None
    # What git refuses in a repository of another user's is to run its hooks; the code in it is at work already.
    command = ["git", "-c", f"safe.directory={root}", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:  # there is no git
        return None
    return result.stdout.rstrip() if result.returncode == 0 else None
