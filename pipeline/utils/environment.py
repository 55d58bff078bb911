"""Set the environment variables of this project's programs and of their child processes.

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
"""Environment variable by which a library finds its cache → that cache's folder in ``.flowtune``."""

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
    """Return the folder whose ``.flowtune`` holds local state: ``FLOWTUNE_ROOT``, or the repository.

    A queued DVC experiment runs in a copy of the repository below ``.dvc/tmp/exps``. That copy is deleted later, so
    the root is then the repository itself.
    """
    root = Path(os.environ.get("FLOWTUNE_ROOT") or Path(__file__).parents[2]).resolve()
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def set_environment() -> None:
    """Set the ``variables`` of this project in this process; its child processes inherit them.

    If the locale's encoding is not UTF-8, the program restarts in Python's UTF-8 mode. Only so do file names, output
    and the files that libraries open without naming an encoding use UTF-8 too.
    """
    os.environ.update(variables(project_root(), os.environ))
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def remember_for_dvc(root: Path) -> Path:
    """Make every program of this Python keep DVC's caches in the project, also ``dvc`` alone; return the file written.

    DVC's configuration cannot do this: DVC resolves a relative folder there against the folder that it runs in.
    """
    file = Path(sysconfig.get_path("purelib"), "flowtune.pth")
    name, folder = "DVC_SITE_CACHE_DIR", str(root / ".flowtune" / CACHES["DVC_SITE_CACHE_DIR"])
    file.write_text(f"import os; os.environ.setdefault({name!r}, {folder!a})\n", encoding="ascii")
    return file


def variables(root: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that programs of the project in ``root`` get in addition to those ``inherited``."""
    found = FIXED | {name: str(root / ".flowtune" / folder) for name, folder in CACHES.items()}
    excepted = [inherited.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for host in ",".join([*excepted, *LOOPBACK]).split(",")]
    found |= dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(dict.fromkeys(filter(None, hosts))))
    if mirror := inherited.get(MIRROR):
        found[MIRROR] = str(root / Path(mirror).expanduser())
    found |= _person(root)
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        found["DVC_SYSTEM_CONFIG_DIR"] = str(root / ".dvc" / "no_git")  # its config tells DVC to work without git
    return found


def _person(root: Path) -> dict[str, str]:
    """Return a user name and a home for a user that has none in the system, as in a container; else nothing."""
    found = {}
    try:
        getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 raises OSError
        found["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        found["HOME"] = str(root / ".flowtune" / "home")
    return found
