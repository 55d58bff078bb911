"""Training over several machines: two torchrun agents of one process equal one agent of two."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.orchestration.stage import in_processes
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError


def agent(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    program = ["--module", "tests.training.drill", str(folder), "flow_matching"]
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *options, *program], cwd=ROOT)


def made(folder: Path, agents: Sequence[subprocess.Popen[bytes]]) -> list[dict[str, Any]]:
    assert [each.wait(timeout=120) for each in agents] == [0] * len(agents)
    return [json.loads((folder / f"made-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_two_torchrun_agents_equal_one_with_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    apart = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=1"]
    two = [agent(tmp_path / "two", *apart, "--local-addr=127.0.0.1") for _ in range(2)]
    one = [agent(tmp_path / "one", "--standalone", "--nproc-per-node=2")]
    assert made(tmp_path / "two", two) == made(tmp_path / "one", one)


def test_another_number_of_processes_than_the_settings_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="processes: given 2, allowed: 4, as many as torchrun started in all"):
        in_processes(2, "stages/train.py")
