"""Describe a data set as text: contents, suspicious findings, and the params.yaml block that learns from it."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline.tasks.formats.cameras import video_findings, videos_of
from pipeline.tasks.formats.recording import Recording
from pipeline.tasks.formats.survey import BOOKKEEPING, REWARDS, Survey, survey
from pipeline.tasks.formats.vectors import read_demonstrations
from pipeline.utils.errors import UserError

ACTIONS = ("action", "actions")
OBSERVED = {"lerobot": "observation.", "robomimic": "obs/", "minari": "observations"}
"""Format → prefix of the keys of observations, for formats that define one."""
USUAL = ("state", "obs", "observation", "observations")


def describe(recording: Recording, given: Path) -> str:
    """Describe the data set; ``given`` is its path as the user wrote it.

    Raises:
        UserError: no episode can be read.
    """
    observation, action = suggested_keys(recording)
    seen = survey(recording, action)
    parts = ["\n".join(_summary(recording, seen)), "\n".join(_ranges(recording, seen))]
    findings = [*seen.findings, *video_findings(recording, sum(seen.lengths))]
    if action and observation:
        try:
            read_demonstrations(recording, observation, action)
        except UserError as error:
            findings.append(f"it cannot be learned from as it is: {error}")
    if findings:
        parts.append("\n".join(["Worth a look:", *(f"- {line}" for line in findings)]))
    if action and observation:
        parts.append(f"For params.yaml:\n\n{block(recording, seen, given, observation, action)}")
    else:
        parts.append("No key holds actions beside observations to learn from.")
    return "\n\n".join(parts)


def suggested_keys(recording: Recording) -> tuple[list[str], str | None]:
    """Guess the keys of the observations and the key of the actions; None: there are no actions."""
    vectors = [key for key, feature in recording.features.items() if feature.is_vector]
    action = next((key for key in ACTIONS if key in vectors), None)
    others = [key for key in vectors if key not in (action, *BOOKKEEPING, *REWARDS)]
    if recording.format in OBSERVED:
        return [key for key in others if key.startswith(OBSERVED[recording.format])], action
    return [key for key in others if key in USUAL][:1] or others, action


def _summary(recording: Recording, seen: Survey) -> Iterator[str]:
    lengths, rate = seen.lengths, recording.rate
    span = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else str(lengths[0])
    seconds = f", {rate:g} Hz, {min(lengths) / rate:.1f} to {max(lengths) / rate:.1f} s" if rate else ""
    yield (
        f"{recording.path}: {recording.title}, {len(lengths)} episodes of {span} steps (median {np.median(lengths):g}),"
        f" {sum(lengths)} steps{seconds}"
    )
    yield from (f"{name}: {text}" for name, text in recording.facts.items())
    if seen.unreadable:
        yield f"left out: {len(seen.unreadable)} episodes, the first since {seen.unreadable[0]}"


def _ranges(recording: Recording, seen: Survey) -> Iterator[str]:
    shown = [component for component in seen.components if component.key not in BOOKKEEPING]
    names = [f"{c.key}[{c.index}] {c.name}".rstrip() for c in shown]
    width = max(map(len, names), default=0)
    yield f"{'component':{width}}  {'least':>11}  {'greatest':>11}"
    for name, component in zip(names, shown, strict=True):
        yield f"{name:{width}}  {component.least:11.4g}  {component.greatest:11.4g}"
    videos = videos_of(recording)
    for key, feature in recording.features.items():
        if not feature.is_vector:
            files = f"; {len(videos[key]) or 'no'} files of it are here" if key in videos else ""
            yield f"{key}: {feature.dtype} {' x '.join(map(str, feature.shape))}, no vector{files}"


def block(recording: Recording, seen: Survey, given: Path, observation: Sequence[str], action: str) -> str:
    """Write the block of params.yaml for a task learned from the data set, as YAML with comments."""
    name = re.sub(r"\W+", "_", given.resolve().stem.lower()).strip("_") or "robot"
    name = name if name[0].isalpha() else f"robot_{name}"
    source = {
        "path": str(given),
        "format": recording.format,
        "observation": {key: recording.features[key].size for key in observation},
        "action": {action: recording.features[action].size},
    }
    custom: dict[str, Any] = {"datasets": {"recorded": source}}
    told: dict[str, Any] = {"task": "custom", "custom": custom, "data": {"dataset": "recorded"}}
    if recording.environment:
        steps = recording.environment.get("max_steps", max(seen.lengths))
        custom["environment"] = {**recording.environment, **_observed(recording, observation), "max_steps": steps}
        if "success" not in recording.environment:
            custom["environment"]["returns"] = _returns(seen)
        told |= {"select": {"evaluation": name}, "evaluation": {"max_steps": steps}}
    else:
        told["select"] = {"rule": "validation_loss"}
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 1000
    yaml.dump({name: told}, text)
    remark = ""
    if not recording.environment:
        remark = "# an offline task, for the lists tasks and offline; or custom.environment names what simulates it\n"
    elif "success" not in recording.environment:
        remark = "# returns: those that score 0 and 1, here the demonstrations'; or success: a key of info\n"
    videos = videos_of(recording)
    pictures = [key for key, feature in recording.features.items() if feature.is_picture and videos.get(key, True)]
    if pictures:
        seen_by = "observation: image, vision: {kind: resnet18, width: 16, crop: 84}"
        remark += f"# to look through a camera too: in recorded, image: {{{pictures[0]}: 96}}; in data, {seen_by}\n"
    return f"{remark}{text.getvalue()}".rstrip()


def _observed(recording: Recording, observation: Sequence[str]) -> dict[str, list[str]]:
    """Return the keys of a dictionary observation by the environment's names."""
    start = OBSERVED.get(recording.format, "")
    inner = [key.removeprefix(start).removeprefix("/") for key in observation]
    return {"observation": inner} if all(inner) else {}


def _returns(seen: Survey) -> list[float]:
    """Return the least and greatest return of an episode; 0 and 1 if rewards are not recorded or all returns equal."""
    low, high = (min(seen.returns), max(seen.returns)) if seen.returns else (0.0, 0.0)
    return [round(low, 3), round(high, 3)] if round(low, 3) < round(high, 3) else [0.0, 1.0]
