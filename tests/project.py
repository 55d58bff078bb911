"""A throw-away project for tests: this one's code, tiny settings, its programs run as users run them."""

import atexit
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, get_args

import numpy as np
from ruamel.yaml import YAML

from pipeline.settings import schema
from pipeline.settings.inputs import resolved_inputs
from pipeline.tracking import queue
from pipeline.utils.atomic import write_text
from pipeline.utils.handover import SERVER
from pipeline.utils.platform import FORK_IS_SAFE

ROOT = Path(__file__).resolve().parent.parent

DATABASE = Path(".flowtune", "mlflow.db")
TINY_RECIPE: dict[str, Any] = {"candidates": 2, "steps": 200, "batch_size": 16, "lr": 1e-3, "fm_lr": 1e-3, "warmup": 5}
TINY_RECIPE |= {"precision": "fp32", "history_points": 1, "history_seeds": 2, "collapse_below": 0.0}
TINY_BLOCK: dict[str, Any] = {
    "threads": 1,
    "data": {"dataset": "pusht_starter", "validation_fraction": 0.2},
    "net": {"width": 16, "depth": 1, "expansion": 1, "time_features": 8},
    "pretrain": {"steps": 400, "batch_size": 16, "warmup": 5, "precision": "fp32", "checkpoints": 2},
    "diffusion": {"steps": 60, "batch_size": 16, "warmup": 5, "precision": "fp32"},
    "select": {"nfe": 2, "seeds": 2},
    "evaluation": {
        "n_seeds": 20,
        "n_seeds_secondary": 3,
        "max_steps": 24,
        "workers": 1,
        "num_envs": 1,  # so that episodes end one by one, and there is something to interrupt
        "policy_batch_size": 4,
        "videos": False,
    },
}
TINY_GAP: dict[str, Any] = {"net": {"width": 16, "depth": 1}, "train": {"steps": 60, "warmup": 5, "batch_size": 16}}
TINY_GAP |= {"trajectories": 4, "nfe": [4, 8]}
TINY_TOYS: dict[str, Any] = {"net": {"width": 16, "depth": 1}, "couplings": ["independent", "nearest"], "free": 2}
TINY_TOYS |= {key: {"steps": 60, "warmup": 5, "batch_size": 16} for key in ("fm", "mle")}
TINY_TOYS |= {key: {"steps": 200, "warmup": 5, "batch_size": 32} for key in ("follow", "settle")}
ALONE = {SERVER: ""}
"""In the environment of programs that do not run in ``program_server``'s processes, but import all by themselves."""
RESIDUALS = {"resft_fm-nfe2": "resft_fm-nfe4", "resft_fm_unet-nfe2": "resft_fm_unet-nfe16"}
TINY_RESIDUAL: dict[str, Any] = {"residual_steps": 1, "candidates": 2, "steps": 200, "batch_size": 16, "warmup": 5}
TINY_RESIDUAL |= {
    "reflow_nfe": 4,
    "precomputed_pairs": 1,
    "guard_every": 100,
    "collapse_below": 0.0,
    "precision": "fp32",
}
TINY_PERSIDSKII: dict[str, Any] = {"net": {"state": "step", "widths": [3, 3], "input": {"width": 16, "depth": 1}}}
TINY_UNET: dict[str, Any] = {"channels": [8], "groups": 2, "time_features": 8}
TINY_DIGITS: dict[str, Any] = {
    "net": {"width": 16, "depth": 1, "expansion": 1, "time_features": 8},
    "extractor": {"channels": 4, "features": 8, "steps": 40, "batch_size": 16},
    "pretrain": {"steps": 60, "batch_size": 16, "warmup": 5, "checkpoints": 3},
    "select": {"latest": 40, "nfe": 2, "n_samples": 40, "sampling_seeds": 2},
    "residual": {"nfe": 2, "residual_steps": 1, "coupling": "nearest", "candidates": 2, "steps": 20, "batch_size": 8},
    "fid": {"n_samples": 40, "sampling_seeds": 2, "batch": 20, "tolerance": 0.01, "halves": 3, "shown": 3},
}
TINY_DIGITS["residual"] |= {"warmup": 5, "net": {"channels": 8, "groups": 4, "head_channels": 8}}
TINY_DIGITS["fid"] |= {"solvers": ["euler-1", "euler-2", "dopri5"]}
TINY_IMAGE_RECIPE: dict[str, Any] = {"batch_size": 16, "warmup": 2, "history_points": 2}
TINY_COUPLINGS = {"nfe1": {"coupling": "nearest", "candidates": 2}, "nfe2": {"reflow_nfe": 4, "precomputed_pairs": 0}}
"""What differs from the starter scale."""


@dataclass(frozen=True)
class Project:
    """A copy of the project in ``root``, in which programs run as they do for users."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Of programs run here: nothing from outside that changes what they do, and no tracking unless asked for."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLOWTUNE_", "DVC_", "MLFLOW_", "PYTEST_", "GIT_"))
            and name not in ("PYTHONPATH", "SHELL")  # without SHELL, DVC uses /bin/sh: the plainest there is
        }
        tools = Path(sys.executable).parent
        return {
            **inherited,
            "PATH": os.pathsep.join([str(tools), inherited["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "FLOWTUNE_TRACKING": "off",
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(self.root / ".flowtune" / "dvc"),  # as `make env` has it for a project's Python
            # what DVC is told for a user or a machine is nothing here
            "DVC_GLOBAL_CONFIG_DIR": str(self.root / ".dvc" / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.root / ".dvc" / "system"),
            **self.env,
        }

    def _served(self) -> dict[str, str]:
        """``environment``, in which stages run in processes of ``program_server`` and do not import torch anew."""
        return {SERVER: program_server()} | self.environment()

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """``python -m <arguments>`` in a session of its own."""
        self._resolve_for(*arguments)
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self._served() | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """``python -m <arguments>`` to its end, whatever that is; a stage has its inputs by params.yaml as it is."""
        self._resolve_for(*arguments)
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self._served() | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    def _resolve_for(self, program: str, *_: str) -> None:
        """Let a stage that is begun by hand have its inputs by params.yaml as it is."""
        settings, inputs = self.root / "params.yaml", self.root / "data" / "inputs"
        by_hand = program.startswith("stages.") and program != "stages.resolve" and settings.exists()
        written = max((path.stat().st_mtime for path in inputs.rglob("*.json")), default=0.0)
        if by_hand and settings.stat().st_mtime > written:
            self.run("stages.resolve")

    def check(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """As ``run``, and it must succeed."""
        result = self.run(*arguments, **env)
        assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
        return result

    def copy(self, root: Path, **env: str) -> "Project":
        """The same project elsewhere, with what has been made so far."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root, env)

    def params(self, key: str, value: object) -> None:
        """Set ``key`` of params.yaml, such as ``starter.pusht.seed``."""
        document = read_yaml(self.root / "params.yaml")
        *blocks, last = key.split(".")
        reduce(getitem, blocks, document)[last] = value
        write_yaml(document, self.root / "params.yaml")

    def keep_stages(self, *names: str) -> None:
        """Leave these stages of dvc.yaml alone."""
        stages = read_yaml(self.root / "dvc.yaml")["stages"]
        write_yaml({"stages": {name: stages[name] for name in names}}, self.root / "dvc.yaml")

    def value(self, key: str) -> Any:
        """What ``key`` of params.yaml holds."""
        return reduce(getitem, key.split("."), read_yaml(self.root / "params.yaml"))

    def files(self, folder: str) -> dict[str, bytes]:
        """Path → contents of all files below ``folder``."""
        paths = sorted((self.root / folder).rglob("*"))
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths if path.is_file()}

    def put_database(self, content: bytes) -> None:
        """Let MLflow find its database, which it would make in seconds."""
        (self.root / DATABASE).parent.mkdir(exist_ok=True)
        (self.root / DATABASE).write_bytes(content)

    def recorded(self) -> None:
        """Wait until MLflow has all that stages have recorded here."""
        assert queue.drain(self.root, 300), "waited in vain for the recorder"

    def processes(self) -> dict[int, str]:
        """Pid → command line of every process that runs in this folder."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").resolve(strict=True) == self.root.resolve():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:  # none: a zombie
                        found[int(process.name)] = command
        return found


def on_another_system(root: Path) -> None:
    """Let the project in ``root`` run on this machine as on one that is not Linux: by the plain fallbacks alone."""
    platform = root / "pipeline" / "utils" / "platform.py"
    text, found = re.subn(r"^LINUX = .*$", "LINUX = False", platform.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found
    platform.write_text(text, encoding="utf-8")


@cache
def program_server() -> str:
    """The socket of this process's ``tests.program_server``, which ends with it; empty where processes cannot fork."""
    if not FORK_IS_SAFE:
        return ""
    folder = tempfile.mkdtemp(prefix="flowtune-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    socket = Path(folder, "socket")
    patient = {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": folder, "PYTHONPATH": ""}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.program_server", str(socket)], cwd=ROOT, env=os.environ | patient
    )
    wait_for(lambda: socket.exists() or server.poll() is not None, "the server of programs to listen")
    return str(socket)


def executed(output: str) -> list[str]:
    """The stages that ``dvc repro`` ran, by its output."""
    return re.findall(r"Running stage '([^']+)'", output)


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = 300) -> None:
    """Wait until ``condition``; fail with ``what`` if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the process, and no other."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def make_project(root: Path) -> Project:
    """This project in the new folder ``root``: its code, tiny settings, demonstrations made on the spot."""
    root.mkdir()
    copy_code(root)
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copy(ROOT / ".dvcignore", root)
    shutil.copytree(ROOT / ".dvc" / "no_git", root / ".dvc" / "no_git")
    (root / ".dvc" / "config").write_text(
        (ROOT / ".dvc" / "config").read_text(encoding="utf-8") + "    no_scm = true\n", encoding="utf-8"
    )
    starter = schema.load(ROOT / "params.yaml").starter.model_dump(exclude_none=True)
    recipe = starter["pusht"]["finetune"]["nfe1"] | TINY_RECIPE
    tiny = _merged(starter["pusht"] | {"finetune": {"nfe1": recipe, "nfe2": recipe}}, TINY_BLOCK)
    residuals = {row: _merged(starter["pusht"]["residual"][like], TINY_RESIDUAL) for row, like in RESIDUALS.items()}
    residuals["resft_fm-nfe2"] = _merged(residuals["resft_fm-nfe2"], TINY_PERSIDSKII)
    residuals["resft_fm_unet-nfe2"]["net"] |= TINY_UNET
    tiny |= {"residual": residuals, "robustness": _merged(tiny["robustness"], {"seeds": 3})}
    choice = {
        "tasks": ["pusht"],
        "offline": [],
        "nfe": [1, 2],
        "residual": list(RESIDUALS),
        "robustness": ["fm-nfe2", "resft_fm-nfe2"],
        "diffusion": ["ddpm-nfe2", "ddim-nfe2"],
        "baselines": ["random", "nearest_demo"],
    }
    digits = starter["digits"] | {
        "finetune": {
            key: starter["digits"]["finetune"][key] | TINY_IMAGE_RECIPE | TINY_COUPLINGS[key] for key in TINY_COUPLINGS
        }
    }
    choice |= {"images": ["digits"], "image_nfe": [1, 2], "theory": ["starter"]}
    small = {"digits": _merged(digits, TINY_DIGITS)}
    small |= {"gap": _merged(starter["gap"], TINY_GAP), "toys": _merged(starter["toys"], TINY_TOYS)}
    block = {"lists": choice, **small, "pusht": tiny}
    scales = {name: block | {"lists": choice | {"theory": [name]}} for name in get_args(schema.Scale)}
    write_yaml({"scale": "starter", **choice, **scales}, root / "params.yaml")
    _save_often(root / "pipeline" / "training" / "loop.py")
    (root / "data" / "recordings").mkdir(parents=True)
    demonstrations = root / "data" / "demonstrations"
    write_demonstrations(demonstrations / "pusht_starter.npz")
    for checksum in (ROOT / "data" / "demonstrations").glob("*.sha256"):  # fetch depends on those of all tasks
        if not (demonstrations / checksum.name).exists():
            shutil.copy(checksum, demonstrations)
    return Project(root)


def copy_code(root: Path) -> None:
    """Copy the project's code into ``root``, with its bytecode, which Python need not compile anew then."""
    for folder in ("pipeline", "stages"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.pyc.*"))  # those half-written


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def write_yaml(values: dict[str, Any], path: Path) -> None:
    """Write plain values, none of them by an alias."""
    yaml = YAML(typ="safe")
    yaml.representer.ignore_aliases = lambda _: True
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def write_settings(values: dict[str, Any]) -> None:
    """Write params.yaml into the current folder, and what each stage reads of it."""
    write_yaml(values, Path("params.yaml"))
    write_inputs()


def write_inputs() -> None:
    """Write what each stage reads of params.yaml in the current folder, as ``resolve`` does."""
    for path, text in resolved_inputs(schema.load()).items():
        write_text(path, text)


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes``, block by block."""
    return settings | {
        key: _merged(settings[key], value) if isinstance(value, dict) else value for key, value in changes.items()
    }


def _save_often(loop: Path) -> None:
    """Let an interruption find something to resume from long before the tiny training ends."""
    text, found = re.subn(
        r"^SAVE_EVERY_S = .*$", "SAVE_EVERY_S = 0.0", loop.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    text, also_found = re.subn(r"^LOG_EVERY = .*$", "LOG_EVERY = 10", text, flags=re.MULTILINE)
    assert found and also_found
    loop.write_text(text, encoding="utf-8")


def write_demonstrations(path: Path) -> None:
    """Write six short Push-T episodes in which the agent is pulled to random places, and their checksum."""
    from pipeline.tasks.pusht.env import PushT, initial_state

    random = np.random.default_rng(0)
    simulation = PushT()
    states, actions, ends, scores = [], [], [], []
    for seed in range(6):
        state, best = simulation.reset(initial_state("b", seed)), 0.0
        for step in range(length := int(random.integers(20, 41))):
            if step % 5 == 0:
                target = random.uniform(100, 400, 2)
            states.append(state)
            actions.append(target)
            state, score, _, _ = simulation.step(target)
            best = max(best, score)
        ends.append(length)
        scores.append(best)
    path.parent.mkdir(parents=True)
    np.savez_compressed(
        path,
        state=np.array(states, dtype=np.float32),
        action=np.array(actions, dtype=np.float32),
        episode_ends=np.cumsum(ends),
        seed=np.arange(6),
        max_score=np.array(scores, dtype=np.float32),
    )
    write_checksum(path)


def write_checksum(path: Path) -> None:
    """Write ``<path>.sha256`` as ``sha256sum`` does."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
