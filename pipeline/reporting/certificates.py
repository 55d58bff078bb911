"""Report the stability of residual models: Table 2's robustness columns, and their certificates in words."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from pipeline.evaluation.statistics import shown
from pipeline.nets.residual import shorter_ratio
from pipeline.reporting import tables
from pipeline.reporting.robustness import disturbed_evaluation, disturbed_results, robustness_markdown, robustness_table
from pipeline.settings.paths import Entry, ScaleReports, split_row
from pipeline.settings.schema import ScaleSettings
from pipeline.stability.certificate import CERTIFIED, UNKNOWN, Certificate
from pipeline.stability.contraction import input_gain
from pipeline.stability.recheck import recheck
from pipeline.utils.atomic import write_csv, write_text

_WHAT = """\
A residual model takes the sample of the frozen base model and moves it on by Euler steps of a second field, system (7)
of arXiv 2510.02081: x' = A0 x + Σ A_j f_j(W_j x) + g, where g depends on the observation, on the base model's sample
and, in some models, on the noise that this was made from, but not on x. What follows is proved of the matrices as they
are stored and run (float32, read as exact numbers), by arithmetic whose rounding errors are bounded; a solver's word is
never taken. Each proof can be redone from the JSON beside this file: [`certificates/`](certificates), with ten lines of
numpy in [the derivations](../../pipeline/stability/README.md).

**Guaranteed, where a row says certified,** for one observation, base sample and noise, in the norm |·|_P written in the
JSON:
- *Euler step*: any two states approach each other in the longest step by the factor ρ at least, and in one that is θ
  times as long by 1 − θ(1 − ρ). A disturbance of the state so dies out, and a lasting disturbance d of g moves the end
  by at most the gain times |d|_P.
- *differential equation*: the same of its solutions, as e^(−λt).
- *input-to-state stability*: with bounded g, solutions stay bounded, and without g they go to zero.
- *region*: any two solutions inside an ellipse around a sample of the base model approach each other as e^(−λt), faster
  than everywhere, and stay inside while the trained input b is at most so long.

**Not guaranteed:** anything about two different observations or base samples (g depends on them through a net of which
nothing is known), about the base model, the robot or its surroundings, or about success; and nothing finer than the
rounding that float32 adds in every operation. A certificate says that the residual forgets, not that it is right."""

_HOW_TO_READ = """\
*Proved*: ρ of the longest step, or λ a unit of time; where nothing is, what was claimed. *Gain*: of a lasting
disturbance of g, in |·|_P. *Measured*: the factor by which the distance of neighbouring states changed in a step of the
policy itself, in |·|_P, on held-out observations; for a region, the share of held-out inputs b that it is good for. A
falsifier searched for states that separate faster than each claim allows, and for inputs that lead further than it
allows; had it found any, the row would be missing."""

_CLAIMS = {
    "step": "the Euler step that is run",
    "flow": "the differential equation",
    "iss": "input-to-state stability (Theorem 3)",
    "region": "a region around a base sample (Theorem 4)",
}


def report(asked: tables.Request) -> None:
    """Write the robustness table and the report on certificates of one scale."""
    settings, reports, blocks = asked.settings, asked.reports, asked.settings.chosen()
    text = reports.robustness.with_suffix(".md")
    with asked.begin(
        deps=[reports.folder / "episodes", reports.folder / "metrics"],
        outs=[reports.robustness, text, reports.certificates],
    ):
        table, missing = _robustness(settings, reports)
        write_csv(reports.robustness, table)
        write_text(text, robustness_markdown(table, settings.robustness[0], missing, tables.evaluation_titles(blocks)))
        results, absent = _certificates(settings, reports)
        write_text(
            reports.certificates, certificates_markdown(reports.scale, results, absent, tables.task_titles(blocks))
        )


def _robustness(settings: ScaleSettings, reports: ScaleReports) -> tuple[pd.DataFrame, list[Entry]]:
    """The table, and the rows that it lacks of tasks that have any."""
    tables, missing = [robustness_table({}, Entry("", "", 0))], []
    for task in [task for task in settings.tasks if task not in settings.offline]:
        evaluation = disturbed_evaluation(reports, task, settings.robustness)
        if evaluation is None:
            continue
        entries = [Entry(evaluation, *split_row(row), within=task) for row in settings.robustness]
        found = disturbed_results(reports, entries)
        missing += [entry for entry in entries if entry not in found]
        precisions = {entry: settings.task(task).precision_of(entry.method, entry.nfe) for entry in entries}
        tables.append(robustness_table(found, entries[0], precisions))
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True), missing


def _certificates(settings: ScaleSettings, reports: ScaleReports) -> tuple[list[dict[str, Any]], list[str]]:
    """The contents of the certify stage's files, and the names of those that are not there."""
    rows = [(task, row, reports.certificate(task, row)) for task in settings.tasks for row in settings.residual]
    found = [json.loads(path.read_text(encoding="utf-8")) for _, _, path in rows if path.exists()]
    return found, [f"{task}-{row}" for task, row, path in rows if not path.exists()]


def certificates_markdown(
    scale: str,
    results: Sequence[Mapping[str, Any]],
    missing: Sequence[str],
    titles: Mapping[str, str] = tables.NO_TITLES,
) -> str:
    """The report on ``results``, the contents of the certify stage's files; ``missing``: rows that have none.

    Every certificate is proved again from its matrices, and one that is not proved is called so.
    """
    head = ["Model", "Claim about", "Status", "Proved", "Gain", "Measured, median", "Measured, largest", "Pairs"]
    lines = []
    for result in results:
        name = _name(result, titles)
        if not result["certificates"]:
            lines.append([name, "—", "nothing is known", *["—"] * 5])
        for kind, written in result["certificates"].items():
            lines.append([name, _CLAIMS[kind], *_proved(written), *_measured(kind, result)])
    return tables.document(
        f"# Certificates of stability, scale `{scale}`",
        _WHAT,
        tables.markdown_table(lines, head),
        "\n".join(_size(result, titles) for result in results if result["certificates"]),
        _HOW_TO_READ,
        tables.missing_list(f"{row}: its certificate is not there" for row in missing),
    )


def _name(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    method, nfe = split_row(result["row"])
    return f"{titles.get(result['task'], result['task'])}, {tables.METHOD_NAMES[method]}, NFE {nfe}"


def _proved(written: Mapping[str, Any]) -> list[str]:
    """Status, claim and gain."""
    certificate = Certificate.from_dict(dict(written))
    status = certificate.status
    if status != UNKNOWN and recheck(dict(written)) != status:
        return ["**not proved by its matrices**", "—", "—"]
    claim = certificate.claim
    said = ""
    if "ratio" in claim:
        said = f"ρ = {claim['ratio']:.4f} at h = {claim['step']:.3g}"
    elif "level" in claim:
        said = f"λ = {claim['rate']:.4f} while ‖b‖_P ≤ {claim['input_radius']:.3g}"
    elif "rate" in claim:
        said = f"λ = {claim['rate']:.4f}"
    if status != CERTIFIED:
        reason = f": {certificate.reason}" if certificate.reason else ""
        return [f"{status}{reason}", f"not {said}" if said else "—", "—"]
    contracting = claim["ratio"] < 1 if "ratio" in claim else "rate" in claim and "level" not in claim
    return [status, said or "yes", f"{input_gain(certificate)['P']:.3g}" if contracting else "—"]


def _measured(kind: str, result: Mapping[str, Any]) -> list[str]:
    """Median and largest, and the number of pairs."""
    if kind == "step":
        decay = result["decay"]
        return [f"{decay['median']:.4f}", f"{decay['largest']:.4f}", str(decay["pairs"])]
    if kind == "region" and result["region_share"] is not None:
        return [f"{shown(result['region_share'], '.0%')} of inputs", "—", "—"]
    return ["—"] * 3


def _size(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    system = next(iter(result["certificates"].values()))["system"]
    branches = ", ".join(f"{len(w)} {name}" for w, name in zip(system["W"], system["functions"], strict=True))
    about = (
        f"- {_name(result, titles)}: {len(system['A0'])} states, branches {branches}, "
        f"{result['train_steps']} training steps, training seed {result['train_seed']}"
    )
    claim = result["certificates"]["step"]["claim"]
    if result["certificates"]["step"]["status"] != CERTIFIED:
        return f"{about}."
    steps = [end - start for start, end in pairwise(result["grid"])]
    left = math.prod(shorter_ratio(claim["ratio"], step / claim["step"]) for step in steps)
    return f"{about}; after its steps ({len(steps)}), at most {left:.3f} of a disturbance at their start is left."
