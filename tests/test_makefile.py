"""The Makefile's help and the set-up of its environment, without network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "requirements.lock").touch()
    return tmp_path


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    return subprocess.run(["make", *arguments], cwd=root, env=env, capture_output=True, encoding="utf-8", check=False)


def test_make_without_target_lists_the_targets(root: Path) -> None:
    result = make(root)
    assert result.returncode == 0
    listed = {line.split()[1].strip(",") for line in result.stdout.splitlines()}
    assert {"repro", "study", "test", "ui", "env"} <= listed
    assert not (root / ".venv").exists()


@pytest.mark.parametrize("target", ["repro", "test"])
def test_missing_python_gives_an_error_with_the_remedy(root: Path, target: str) -> None:
    old = root / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")  # every version check fails
    old.chmod(0o755)
    result = make(root, target, f"PYTHON={old}")
    assert result.returncode != 0
    assert result.stderr.splitlines()[0] == (
        "error: python3 3.11 or 3.12 is needed and was not found; install one and say where it is with: "
        f"make {target} PYTHON=/path/to/python3.12"
    )
    assert not (root / ".venv").exists() and not (root / ".tools").exists()


def test_up_to_date_environment_is_not_rebuilt(root: Path) -> None:
    stamp = root / ".venv" / ".synced"
    stamp.parent.mkdir()
    stamp.touch()
    result = make(root, "env", "PYTHON=/nowhere/python")
    assert result.returncode == 0, result.stderr


FAKE = """#!/bin/sh
# replaces python3, .tools/bin/python and uv
{ echo "$@"; env; } >> "$LOG"
case "$*" in
  "-m venv .tools") mkdir -p .tools/bin && cp "$0" .tools/bin/python ;;
  *" pip install "*) cp "$0" .tools/bin/uv ;;
  *" venv "*|"venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


def test_environment_is_built_in_the_project_despite_pip_uv_and_python_variables(root: Path) -> None:
    python, log = root / "python", root / "log.txt"
    python.write_text(FAKE, encoding="utf-8")
    python.chmod(0o755)
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PYTHONHOME", "PYTHONPATH", "UV_PROJECT")
    elsewhere += ("UV_WORKING_DIR", "UV_CONSTRAINT", "UV_TORCH_BACKEND")
    kept = {"LOG": str(log), "PATH": "/usr/bin:/bin", "HOME": "/proc/no-home", "PIP_INDEX_URL": "https://example.org"}
    result = subprocess.run(
        ["make", "env", f"PYTHON={python}"],
        cwd=root,
        env={**dict.fromkeys(elsewhere, "/elsewhere"), **kept, "PIP_USER": "1", "LC_ALL": "zh_CN.GBK"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    logged = log.read_text(encoding="utf-8").splitlines()
    assert not [line for line in logged if line.endswith("=/elsewhere")]
    assert "PIP_USER=0" in logged and "PIP_USER=1" not in logged
    assert "PYTHONUTF8=1" in logged and "PIP_INDEX_URL=https://example.org" in logged
    assert "UV_CACHE_DIR=.tools/cache" in logged
    assert (root / ".venv" / ".synced").exists()
