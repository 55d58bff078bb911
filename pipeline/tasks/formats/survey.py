"""Survey a data set before anything is learned from it: ranges, lengths and common faults of recordings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.formats.recording import Recording, Rows
from pipeline.utils.errors import UserError

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Keys that LeRobot adds; they are neither observations nor actions."""
REWARDS = ("reward", "rewards", "next.reward")
ALMOST_ALL = 0.95
"""Share of steps in which two vectors must agree to be taken for the same."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Component:
    """One number of each step: key, index, name, range over all steps, and count of steps in which it is not finite."""

    key: str
    index: int
    name: str
    least: float
    greatest: float
    missing: int


@dataclass(frozen=True)
class Survey:
    """The survey of a data set.

    Attributes:
        lengths: steps of each readable episode.
        unreadable: the error of each other episode.
        components: the components of every key that holds vectors, in order.
        findings: possible faults to check before training, one line each.
        returns: the sum of rewards of each readable episode; empty if rewards are not recorded.
    """

    lengths: tuple[int, ...]
    unreadable: tuple[str, ...]
    components: tuple[Component, ...]
    findings: tuple[str, ...]
    returns: tuple[float, ...] = ()


def survey(recording: Recording, action: str | None) -> Survey:
    """Read all vectors of a data set once and survey them.

    Args:
        action: the key of the actions, if there is one.

    Raises:
        UserError: no episode can be read.
    """
    keys = [key for key, feature in recording.features.items() if feature.is_vector]
    episodes: list[dict[str, Numbers]] = []
    unreadable: list[str] = []
    for name, read in recording.episodes.items():
        try:
            episodes.append(_numbers(name, read, keys))
        except UserError as error:
            unreadable.append(str(error))
    if not episodes:
        raise UserError(unreadable[0] if unreadable else f"{recording.path}: holds no episodes")
    whole = {key: np.concatenate([episode[key] for episode in episodes]) for key in keys}
    components = tuple(_components(recording, whole))
    findings = [
        *_missing(components),
        *_constant(components),
        *_repeated(components, whole),
        *_time_gaps(recording, episodes),
        *_frozen(keys, episodes),
        *(_about_actions(action, whole, episodes) if action else ()),
    ]
    lengths = tuple(len(episode[keys[0]]) for episode in episodes)
    rewards = next((key for key in REWARDS if key in keys), None)
    returns = tuple(float(episode[rewards].sum()) for episode in episodes) if rewards else ()
    return Survey(lengths, tuple(unreadable), components, tuple(findings), returns)


def _numbers(name: str, read: Callable[[Sequence[str]], Rows], keys: Sequence[str]) -> dict[str, Numbers]:
    rows = read(keys)
    if len({len(array) for array in rows.values()}) > 1:
        raise UserError(f"{name} has different numbers of rows: {', '.join(f'{k} {len(a)}' for k, a in rows.items())}")
    return {key: array.reshape(len(array), -1).astype(np.float64) for key, array in rows.items()}


def _components(recording: Recording, whole: dict[str, Numbers]) -> Iterator[Component]:
    for key, rows in whole.items():
        names = recording.features[key].names
        for i, column in enumerate(rows.T):
            finite = column[np.isfinite(column)]
            least, greatest = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
            name = names[i] if len(names) == rows.shape[1] else ""
            yield Component(key, i, name, float(least), float(greatest), len(column) - finite.size)


def _missing(components: Sequence[Component]) -> Iterator[str]:
    for component in components:
        if component.missing:
            yield f"{_called(component)} is NaN or infinite in {component.missing} steps"


def _constant(components: Sequence[Component]) -> Iterator[str]:
    fixed = [_called(c) for c in components if c.least == c.greatest and c.key not in BOOKKEEPING]
    if fixed:
        yield f"constant: {', '.join(fixed)}"


def _repeated(components: Sequence[Component], whole: dict[str, Numbers]) -> Iterator[str]:
    """Report components that equal an earlier component in every step."""
    first: dict[bytes, Component] = {}
    for component in components:
        if component.key in BOOKKEEPING or not component.least < component.greatest:
            continue
        content = np.ascontiguousarray(whole[component.key][:, component.index]).tobytes()
        if content in first:
            yield f"{_called(component)} repeats {_called(first[content])}"
        else:
            first[content] = component


def _time_gaps(recording: Recording, episodes: Sequence[dict[str, Numbers]]) -> Iterator[str]:
    if recording.rate is None or "timestamp" not in episodes[0]:
        return
    steps = np.concatenate([np.diff(episode["timestamp"][:, 0]) for episode in episodes]) * recording.rate
    odd = np.abs(steps - 1) > 0.5
    if odd.any():
        worst = steps[np.abs(steps - 1).argmax()] / recording.rate
        yield f"gaps in time: {odd.sum()} steps last longer or shorter than 1/{recording.rate:g} s, one {worst:.3g} s"


def _frozen(keys: Sequence[str], episodes: Sequence[dict[str, Numbers]]) -> Iterator[str]:
    for key in keys:
        still = np.concatenate([(np.diff(episode[key], axis=0) == 0).all(axis=1) for episode in episodes])
        share = still.mean() if still.size else 0.0
        if key not in BOOKKEEPING and episodes[0][key].shape[1] > 1 and 0.1 < share < 1:
            yield f"{key} equals that of the step before in {share:.0%} of the steps"


def _about_actions(action: str, whole: dict[str, Numbers], episodes: Sequence[dict[str, Numbers]]) -> Iterator[str]:
    least, greatest = np.nanmin(whole[action], 0), np.nanmax(whole[action], 0)
    if (np.abs([least, greatest]) <= 1.001).all() and (greatest - least).max() > 1.5:
        yield f"{action} lies within -1 and 1: it looks normalised; the environment must expect it so"
    for key, rows in whole.items():
        if key == action or rows.shape[1] != whole[action].shape[1]:
            continue
        for later, text in ((1, "that of the next step"), (0, "that of the same step")):
            done = np.concatenate([episode[action][: len(episode[key]) - later] for episode in episodes])
            seen = np.concatenate([episode[key][later:] for episode in episodes])
            share = np.isclose(done, seen, rtol=1e-5, atol=1e-6 * np.nanmax(greatest - least)).all(axis=1).mean()
            if share > ALMOST_ALL:
                yield f"{action} equals {key}, {text}, in {share:.0%} of the steps: it is a position to go to"


def _called(component: Component) -> str:
    return f"{component.key}[{component.index}]" + (f" ({component.name})" if component.name else "")
