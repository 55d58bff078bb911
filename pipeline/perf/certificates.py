"""Time the certification of chunks of actions of the sizes of Push-T, Franka Kitchen and Transport.

    python -m pipeline.perf.certificates

writes reports/benchmarks_certificates.csv and .md. Two kinds of state are timed. A whole chunk as one state contracts
by construction. One action as the state shares its matrices along the chunk; the best claim is searched for. Weights
are random and moved as far from their start as by training. The falsifier's search for a counterexample is timed
separately.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.reporting.tables import markdown_table
from pipeline.stability.contraction import certify_step, smallest_ratio
from pipeline.stability.falsify import cross_check
from pipeline.stability.parameterization import ContractingStep
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.hardware import cores

CHUNKS = (
    ("Push-T", 16, 2),
    ("Franka Kitchen, executed", 8, 9),
    ("Franka Kitchen", 24, 9),
    ("Transport, executed", 8, 20),
    ("Transport", 16, 20),
)
"""Task, actions per chunk, components of an action."""

FUNCTIONS = ("tanh", "softsign")
STEP, RATIO = 0.25, float(np.exp(-0.25))


@dataclass(frozen=True)
class Row:
    """One certificate; ``state``, `chunk` or `action`, with ``states`` components, ``branches`` of them nonlinear."""

    task: str
    chunk: int
    state: str
    states: int
    branches: int
    status: str
    ratio: float
    certify_s: float
    falsify_s: float


def measure(chunks: Sequence[tuple[str, int, int]] = CHUNKS) -> list[Row]:
    """Certify each chunk as one state, then each size of action; a row each."""
    work = [(*chunk, "chunk") for chunk in chunks]
    work += [(*chunk, "action") for chunk in {size: (task, n, size) for task, n, size in chunks}.values()]
    return [_certify(*item) for item in tqdm(work, desc="certify", unit="certificate")]


def _certify(task: str, actions: int, size: int, state: str) -> Row:
    n = actions * size if state == "chunk" else size
    torch.manual_seed(n)
    source = ContractingStep(n, [n // 2 or 1] * len(FUNCTIONS), FUNCTIONS, STEP, RATIO)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 / n**0.5 * torch.randn_like(parameter))
    system, (norm, multipliers) = source.system(), source.witness()
    begin = perf_counter()
    certificate = certify_step(system, RATIO, STEP, norm, multipliers)
    if state == "action":
        certificate = smallest_ratio(system, STEP)
    certified = perf_counter()
    cross_check(certificate, system)
    falsified = perf_counter()
    ratio = certificate.claim["ratio"]
    branches = system.stacked[1].shape[0]
    return Row(
        task, actions * size, state, n, branches, certificate.status, ratio, certified - begin, falsified - certified
    )


def write(folder: Path, rows: Sequence[Row], about: str) -> None:
    """Write the rows to ``benchmarks_certificates.csv`` and, with ``about`` above them, to ``.md``."""
    table = pd.DataFrame([asdict(row) for row in rows]).round({"ratio": 4, "certify_s": 2, "falsify_s": 2})
    write_csv(folder / "benchmarks_certificates.csv", table)
    text = markdown_table(table.astype(str).to_numpy().tolist(), list(Row.__dataclass_fields__))
    write_text(folder / "benchmarks_certificates.md", f"{about}\n{text}\n")


_ABOUT = """\
# How long it takes to certify a chunk

`python -m pipeline.perf.certificates --threads {threads}`: the Euler step of system (7), h = {step}, certified
with error-bounded arithmetic on {threads} of the machine's {cpus} CPUs, load average before the start {load:.1f}.

- `state` `chunk`: the whole chunk is one state, constructed to contract by ρ = {ratio:.4f}; P and Γ come with the
  construction, so that nothing is searched for.
- `state` `action`: one action is the state and its matrices are shared along the chunk, so that the certificate of the
  block is that of the chunk; the smallest provable ρ is searched for by semidefinite programs.
- `certify_s`: seconds to the certificate; `falsify_s`: of the search for a counterexample after it, which found none.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cores())
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    rows = measure()
    about = _ABOUT.format(step=STEP, ratio=RATIO, threads=threads, cpus=cores(), load=load)
    write(Path("reports"), rows, about)


if __name__ == "__main__":
    main()
