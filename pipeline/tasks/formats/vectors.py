"""Make demonstrations from a recording: read and check the vectors under the chosen keys."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.demonstrations import Demonstrations, read_episodes
from pipeline.tasks.formats.recording import Recording, Rows
from pipeline.utils.errors import UserError

Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""States (T, S) and actions (T, A) of an episode."""


def read_demonstrations(recording: Recording, observation: Sequence[str], action: str) -> Demonstrations:
    """Read the concatenated observations under the keys ``observation``, and the actions under ``action``.

    If episodes are stored one by one, unusable episodes are left out with a warning. Arrays of several dimensions are
    flattened; integers and booleans become float32.

    Raises:
        UserError: a key is absent or no vector; keys differ in their number of rows; numbers are not finite or too
            large for float32; no episode is usable; the data set's own statistics do not fit its data.
    """
    return laid_end_to_end(recording, observation, action, read_vectors(recording, observation, action))


def read_vectors(recording: Recording, observation: Sequence[str], action: str) -> dict[str, Vectors]:
    """Read the usable episodes by name; arguments and errors as ``read_demonstrations``, without the statistics."""
    recording.require("observation", observation)
    recording.require("action", [action])

    def reading(name: str, read: Callable[[Sequence[str]], Rows]) -> Callable[[], Vectors]:
        def vectors() -> Vectors:
            rows = read(list(dict.fromkeys([*observation, action])))
            lengths = {key: len(array) for key, array in rows.items()}
            if len(set(lengths.values())) != 1 or not lengths[action]:
                raise UserError(f"{name} has different numbers of rows, or none: {_listed(lengths)}")
            states = [_vectors(recording, name, key, rows) for key in observation]
            return np.concatenate(states, axis=1), _vectors(recording, name, action, rows)

        return vectors

    readers = {name: reading(name, read) for name, read in recording.episodes.items()}
    if recording.one_by_one:
        return read_episodes(recording.path, readers)
    return {name: read() for name, read in readers.items()}


def laid_end_to_end(
    recording: Recording, observation: Sequence[str], action: str, episodes: Mapping[str, Vectors]
) -> Demonstrations:
    """Concatenate the ``episodes`` of ``read_vectors`` into demonstrations.

    Raises:
        UserError: no episode was left out, and yet the data set's own statistics do not fit its data.
    """
    demonstrations = Demonstrations(
        state=np.concatenate([state for state, _ in episodes.values()]),
        action=np.concatenate([action for _, action in episodes.values()]),
        episode_ends=np.cumsum([len(action) for _, action in episodes.values()], dtype=np.int64),
    )
    if len(episodes) == len(recording.episodes):
        _check_statistics(recording, observation, demonstrations.state)
        _check_statistics(recording, [action], demonstrations.action)
    return demonstrations


def _listed(lengths: dict[str, int]) -> str:
    return ", ".join(f"{key} {length}" for key, length in lengths.items())


def _vectors(recording: Recording, name: str, key: str, rows: Rows) -> NDArray[np.float32]:
    """Flatten and check the rows (T, …) of one key; return (T, D)."""
    array, feature = rows[key], recording.features[key]
    if array.dtype.kind not in "biuf" or array.shape[1:] != feature.shape:
        raise UserError(f"{name}: {key} is {array.dtype} {array.shape}, expected {feature.dtype} (T, *{feature.shape})")
    with np.errstate(over="ignore"):  # numbers too large become infinite and are found below
        vectors = array.reshape(len(array), -1).astype(np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int((~finite).sum())
        where = f"first at step {finite.argmin()} (steps affected: {bad})"
        raise UserError(f"{name}: {key} holds NaN, infinity or numbers beyond float32, {where}")
    return vectors


def _check_statistics(recording: Recording, keys: Sequence[str], rows: NDArray[np.float32]) -> None:
    """Compare the range of the data with the range in the data set's own statistics."""
    column = 0
    for key in keys:
        columns = slice(column, column := column + recording.features[key].size)
        if key not in recording.limits:
            continue
        low, high = recording.limits[key]
        found = rows[:, columns].min(0), rows[:, columns].max(0)
        if not low.shape == high.shape == found[0].shape:
            raise UserError(
                f"{recording.statistics}: {key} has statistics of {low.size} components, the data {found[0].size}"
            )
        tolerance = 1e-4 * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
        fits = (np.abs(found[0] - low) <= tolerance) & (np.abs(found[1] - high) <= tolerance)
        if not fits.all():
            i = int(fits.argmin())
            told, reached = f"{low[i]:.6g} to {high[i]:.6g}", f"{found[0][i]:.6g} to {found[1][i]:.6g}"
            raise UserError(
                f"{recording.statistics}: says component {i} of {key} reaches {told}, but the data reach {reached};"
                " it is of other data, or data are missing: fetch the data set anew, or remove that file"
            )


def require_windows(demonstrations: Demonstrations, horizon: int) -> None:
    """Refuse episodes shorter than the predicted action sequence.

    Args:
        horizon: ``data.horizon`` of params.yaml.

    Raises:
        UserError: with the number of such episodes, and the shortest.
    """
    lengths = np.diff(demonstrations.episode_ends, prepend=0)
    short = int((lengths < horizon).sum())
    if short:
        shortest = f"the shortest, number {lengths.argmin()}, has {lengths.min()} steps"
        raise UserError(f"data.horizon: given {horizon}, {short} of {len(lengths)} episodes are shorter; {shortest}")
