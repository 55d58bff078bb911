"""The wheel ``flowtune``: its files, its requirements, and fine-tuning and acting with no more than these."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.utils.code_deps import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BROUGHT = {"flowtune", "psutil"}
"""Members of the extras that are installed without them: the package itself, and a requirement of accelerate."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, with the installed backend and without network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("flowtune", "pipeline", "stages"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('out'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (made,) = (source / "out").glob("*.whl")
    return made


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def test_wheel_contains_exactly_the_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name) for name in archive.namelist() if name.endswith("/METADATA"))
    own = {
        str(path.relative_to(ROOT))
        for folder in ("flowtune", "pipeline")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".csv")
    }
    assert files == own
    about = message_from_bytes(metadata)
    assert (about["Name"], about["License-Expression"]) == ("flowtune", "MIT")
    always = [each for each in about.get_all("Requires-Dist") or [] if "extra ==" not in each]
    assert names(always) == names(PROJECT["dependencies"])
    assert set(about.get_all("Provides-Extra") or []) == {"pusht", "simulators", "pipeline"}


def test_fine_tuning_and_acting_need_no_extras(wheel: Path) -> None:
    extras = names([each for extra in PROJECT["optional-dependencies"].values() for each in extra]) - BROUGHT
    made_by = packages_distributions().items()
    modules = {module for module, distributions in made_by if extras & set(map(canonicalize_name, distributions))}
    installed = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert {"mlflow", "gymnasium", "pandas"} <= modules
    program = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(modules)}))  # not to be imported
sys.path[:] = [{str(installed)!r}, *(path for path in sys.path if path and path != {str(ROOT)!r})]
import torch
from flowtune import fine_tune, load_policy
class Field(torch.nn.Linear):
    def forward(self, t, x, condition):
        return super().forward(x)
tuned = fine_tune(Field(2, 2), torch.randn(64, 2), nfe=1, steps=2, batch_size=8)
controller = load_policy({str(ROOT / "data/checkpoints/lab/pusht/ft_fm-nfe1.safetensors")!r}, batch_size=1)
controller.reset(seed=0)
print(tuned.steps, controller.act([222, 97, 222, 381, 3]).shape)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=wheel.parent, capture_output=True, encoding="utf-8", check=False
    )
    assert done.stdout == "2 (2,)\n", done.stderr
