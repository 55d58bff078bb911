"""Train a tiny net undisturbed, killed in many places and in two processes, and write the results.

Run as ``python -m tests.training.drill FOLDER``, since it forks: torch is loaded once, and no thread of the test runner
is forked.
"""

import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # loaded once here instead of in every fork, which takes seconds
from torch import Tensor, nn

from pipeline.flow.coupling import nearest
from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.path import i_cfm
from pipeline.nets.lora import add_lora
from pipeline.nets.mlp import MLP
from pipeline.settings.schema import Optimization
from pipeline.training import loop
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import Batches, Objective
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.seeding import Generators

STEPS, MILESTONES = 30, (0, 10, 20, 30)
OPTIMIZATION = Optimization(
    steps=STEPS, batch_size=8, lr=1e-3, weight_decay=1e-4, warmup=3, max_grad_norm=1.0, ema_decay=0.9, precision="fp32"
)

Sabotage = Callable[[], None]
"""Prepares a process to be killed at some point."""


class Silent:
    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass


def make_objective(kind: str, generators: Generators) -> Objective:
    torch.manual_seed(0)
    net = MLP(4, 2, 3, width=16, depth=1, expansion=2, time_features=8)
    if kind == "mle":
        return Reconstruction(net, nearest(3), 2, generators)
    if kind in COVARIANCES:
        objective = Reconstruction(
            net,
            nearest(3),
            2,
            generators,
            covariance=COVARIANCES[kind]((4, 2)),
            fm_weight=0.5,
            path=i_cfm(0.1),
            energy_weight=0.1,
        )
        add_lora(net, 4, 8.0, generators["lora"])
        return objective
    # path noise, so that every random stream is in use
    return FlowMatching(net, i_cfm(0.1), nearest(1), generators)


def run(kind: str, folder: Path) -> None:
    """Train, resuming from ``folder``, and write a digest of the results there."""
    process = int(os.environ.get("RANK", "0"))
    generators = Generators(7, kind)
    objective = make_objective(kind, generators)
    drawn: list[float] = []
    objective.register_forward_pre_hook(lambda _module, inputs: drawn.append(inputs[1].sum().item()))
    looked: dict[int, str] = {}

    def look(step: int, net: nn.Module) -> bool:
        looked[step] = digest(net)
        return True

    log = TrainingLog(folder / f"log-{process}.jsonl", Silent())
    data = torch.Generator().manual_seed(1)
    net = loop.train(
        objective,
        Batches(torch.randn(64, 3, generator=data), torch.randn(64, 4, 2, generator=data)),
        OPTIMIZATION,
        generators,
        milestones=MILESTONES,
        on_milestone=look,
        log=log,
        state_path=folder / "state.pt",
    )
    if log.rows:  # only the first process keeps a log
        log.write_csv(folder / f"log-{process}.csv")
    made = {
        "weights": digest(net),
        "beside": digest(objective.beside),
        "log": log.rows,
        "milestones": looked,
        "last_batch": drawn[-1],
        "steps": len(drawn),
    }
    (folder / f"made-{process}.json").write_text(json.dumps(made), encoding="utf-8")


def digest(net: nn.Module) -> str:
    tensors: list[Tensor] = list(net.state_dict().values())
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def kill_at(owner: Any, name: str, call: int, *, after_half: bool = False) -> Sabotage:
    """Kill the process at the ``call``-th call of ``owner.name``; with ``after_half``, after half a file."""

    def prepare() -> None:
        original, calls = getattr(owner, name), 0

        def deadly(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                if after_half:
                    Path(arguments[1]).write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(owner, name, deadly)

    return prepare


def spawn(kind: str, folder: Path, processes: int = 1, sabotage: Sabotage = lambda: None) -> list[int]:
    """Train in forked processes, the last of them sabotaged, and return their pids."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for process in range(processes):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
                os.environ |= {"RANK": str(process), "LOCAL_RANK": str(process), "LOCAL_WORLD_SIZE": str(processes)}
            if process == processes - 1:
                sabotage()
            run(kind, folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pids


def wait(pids: list[int]) -> list[int]:
    """Return exit codes, negative for a signal; kill the other processes once one failed."""
    codes: dict[int, int] = {}
    for pid in reversed(pids):
        codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if codes[pid]:
            for other in set(pids) - codes.keys():
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def main(root: Path) -> None:
    torch.set_num_threads(1)
    loop.LOG_EVERY, loop.SAVE_EVERY_S = 4, 0.0
    results: dict[str, Any] = {}

    def attempt(name: str, kind: str, processes: int = 1, sabotage: Sabotage | None = None) -> None:
        folder = root / name
        codes = wait(spawn(kind, folder, processes, sabotage)) if sabotage else []
        codes += wait(spawn(kind, folder, processes))
        made = [
            json.loads((folder / f"made-{process}.json").read_text(encoding="utf-8")) for process in range(processes)
        ]
        results[name] = {"codes": codes, "made": made}

    for kind in ("mle", "flow_matching"):
        began = time.monotonic()
        attempt(kind, kind)
        duration = time.monotonic() - began
        for step in (1, 6, 19, 30):
            attempt(f"{kind}, killed in step {step}", kind, 1, kill_at(Batches, "draw", step))
        attempt(f"{kind}, killed in a milestone", kind, 1, kill_at(sys.modules[__name__], "digest", 3))
        attempt(f"{kind}, killed within a save", kind, 1, kill_at(torch, "save", 3, after_half=True))
        attempt(f"{kind}, killed before a save's rename", kind, 1, kill_at(os, "fsync", 2))
        folder = root / f"{kind}, killed at any moment"
        moments = random.Random(kind)
        for _ in range(3):
            (pid,) = spawn(kind, folder)
            time.sleep(moments.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
            wait([pid])
        attempt(folder.name, kind)
    attempt("two processes", "mle", 2)
    attempt("two processes, one killed", "mle", 2, kill_at(Batches, "draw", 19))
    for kind in ("learned", "profiled"):
        attempt(f"two processes, {kind}", kind, 2)
        attempt(f"two processes, {kind}, one killed", kind, 2, kill_at(Batches, "draw", 27))
    folder = root / "one process after two"
    folder.mkdir()
    (folder / "state.pt").write_bytes((root / "two processes" / "state.pt").read_bytes())
    attempt(folder.name, "mle")
    (root / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 2:  # under torchrun: one training of this kind
        torch.set_num_threads(1)
        run(sys.argv[2], Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))
