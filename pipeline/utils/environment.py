"""Set the environment variables that this project's programs, and all that they start, run with.

Caches lie in the project's ``.flowtune``, loopback goes through no proxy, text is UTF-8, telemetry is off.
"""

import getpass
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

CACHES = {
    "DVC_SITE_CACHE_DIR": "dvc",  # else /var/tmp/dvc
    "MPLCONFIGDIR": "matplotlib",  # else ~/.config and ~/.cache
    "PREFECT_HOME": "prefect",
    "TRITON_HOME": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "XDG_CACHE_HOME": "cache",  # Mesa's shaders, fontconfig, torch, Hugging Face
}
"""Folders in ``.flowtune``, by the variable that a library finds its own with."""

FIXED = {
    "PYTHONUTF8": "1",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIRROR = "FLOWTUNE_MIRROR"


def project_root() -> Path:
    """The folder whose ``.flowtune`` holds local state: ``FLOWTUNE_ROOT``, or the repository.

    A queued DVC experiment runs in a copy of the repository below ``.dvc/tmp/exps``, which is thrown away: its runs
    belong to the repository itself.
    """
    root = Path(os.environ.get("FLOWTUNE_ROOT") or Path(__file__).parents[2]).resolve()
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def set_environment() -> None:
    """Give this process, and those that it starts, what ``variables`` says for this project.

    A program whose locale has another encoding than UTF-8 begins anew in Python's UTF-8 mode: there is no other way to
    have names of files, output, and what libraries read without a word on encodings, in it too.
    """
    os.environ.update(variables(project_root(), os.environ))
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def remember_for_dvc(root: Path) -> Path:
    """Have every program of this Python keep DVC's caches in the project, ``dvc`` by itself too; the file that says so.

    DVC takes a relative folder in its configuration for one of whatever folder it is run in.
    """
    file = Path(sysconfig.get_path("purelib"), "flowtune.pth")
    name, folder = "DVC_SITE_CACHE_DIR", str(root / ".flowtune" / CACHES["DVC_SITE_CACHE_DIR"])
    file.write_text(f"import os; os.environ.setdefault({name!r}, {folder!a})\n", encoding="ascii")
    return file


def variables(root: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the programs of the project in ``root`` have in their environment beside what they ``inherited``."""
    found = FIXED | {name: str(root / ".flowtune" / folder) for name, folder in CACHES.items()}
    excepted = [inherited.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for host in ",".join([*excepted, *LOOPBACK]).split(",")]
    found |= dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(dict.fromkeys(filter(None, hosts))))
    if mirror := inherited.get(MIRROR):
        found[MIRROR] = str(root / Path(mirror).expanduser())
    found |= _person(root)
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        found["DVC_SYSTEM_CONFIG_DIR"] = str(root / ".dvc" / "no_git")  # where DVC is told to do without
    return found


def _person(root: Path) -> dict[str, str]:
    """A name and a home for a user of whom the system knows none, as in a container; else nothing."""
    found = {}
    try:
        getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 has the latter
        found["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        found["HOME"] = str(root / ".flowtune" / "home")
    return found
