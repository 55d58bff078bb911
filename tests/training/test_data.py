"""Preparation of demonstrations: held-out episodes, normalisation statistics and files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.tasks.demonstrations import Demonstrations
from pipeline.training.data import PreparedData, prepare
from pipeline.utils.errors import UserError
from tests.training.helpers import data_settings

SETTINGS = data_settings(validation_fraction=0.3)
LENGTHS = [5, 8, 3, 6, 7, 4]
ENDS = np.cumsum(LENGTHS)


def demonstrations() -> Demonstrations:
    """Return six episodes; every number of episode e lies in [100 e, 100 e + 50)."""
    generator = np.random.default_rng(0)
    episode = np.repeat(np.arange(6), LENGTHS)[:, None]
    state = 100 * episode + generator.uniform(0, 50, (ENDS[-1], 5))
    action = 100 * episode + generator.uniform(0, 50, (ENDS[-1], 2))
    return Demonstrations(state.astype(np.float32), action.astype(np.float32), ENDS.astype(np.int64))


def identity(states: np.ndarray) -> np.ndarray:
    return states


def episodes_of(data: PreparedData, *, held_out: bool) -> set[int]:
    action = data.held_out_action if held_out else data.action
    return {int(value) for value in torch.unique(data.action_normalizer.denormalize(action).add(0.01).div(100).floor())}


def test_split_keeps_episodes_whole_and_every_window() -> None:
    data = prepare(demonstrations(), SETTINGS, identity, seed=0)
    training, held_out = episodes_of(data, held_out=False), episodes_of(data, held_out=True)
    assert (training | held_out, training & held_out) == (set(range(6)), set())
    assert len(held_out) == 2
    assert len(data.action) == sum(LENGTHS[episode] for episode in training)
    assert len(data.held_out_condition) == sum(LENGTHS[episode] for episode in held_out)
    assert data.condition.shape[1:] == (2 * 5,)
    assert data.action.shape[1:] == (4, 2)


def test_held_out_episodes_do_not_leak_into_the_statistics() -> None:
    data = prepare(demonstrations(), SETTINGS, identity, seed=0)
    held_out = np.isin(np.repeat(np.arange(6), LENGTHS), list(episodes_of(data, held_out=True)))
    spoiled = demonstrations()
    spoiled = replace(
        spoiled,
        state=np.where(held_out[:, None], 1e6, spoiled.state).astype(np.float32),
        action=np.where(held_out[:, None], -1e6, spoiled.action).astype(np.float32),
    )
    other = prepare(spoiled, SETTINGS, identity, seed=0)
    assert torch.equal(other.condition, data.condition)
    assert torch.equal(other.action, data.action)
    assert data.condition.abs().max() <= 1 + 1e-5
    assert other.held_out_action.abs().min() > 100


def test_conditions_and_actions_come_from_the_same_rows() -> None:
    given = demonstrations()
    data = prepare(given, SETTINGS, lambda states: states, seed=0)
    observed = data.observation_normalizer.denormalize(data.condition.view(-1, 2, 5))
    actions = data.action_normalizer.denormalize(data.action)
    for newest, first in zip(observed[:, -1], actions[:, 0], strict=True):
        row = np.abs(given.state - newest.numpy()).sum(1).argmin()
        np.testing.assert_allclose(given.action[row], first, atol=1e-3)


@pytest.mark.parametrize("offline", [False, True])
def test_prepared_data_round_trip_and_equal_data_give_equal_bytes(offline: bool, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validation_fraction": 0.5, "horizon": 2})
    data = prepare(demonstrations(), settings, identity, seed=0, offline=offline)
    data.save(tmp_path / "a.npz")
    data.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = PreparedData.load(tmp_path / "a.npz")
    for name in ("condition", "action", "held_out_condition", "held_out_action"):
        assert torch.equal(getattr(loaded, name), getattr(data, name))
    for name in ("observation_normalizer", "action_normalizer"):
        assert torch.equal(getattr(loaded, name).offset, getattr(data, name).offset)
        assert torch.equal(getattr(loaded, name).scale, getattr(data, name).scale)
    assert (data.reported is not None) == (loaded.reported is not None) == offline
    for name, array in vars(data.reported).items() if data.reported else ():
        np.testing.assert_array_equal(getattr(loaded.reported, name), array)


def test_validation_fraction_without_training_episodes_is_refused() -> None:
    settings = SETTINGS.model_copy(update={"validation_fraction": 0.95})
    with pytest.raises(UserError, match=r"^validation_fraction: given 0.95, allowed: a share of the 6 episodes"):
        prepare(demonstrations(), settings, identity, seed=0)


def test_offline_split_keeps_reported_episodes_out_of_training_and_selection() -> None:
    settings = SETTINGS.model_copy(update={"validation_fraction": 0.5, "horizon": 2})
    data = prepare(demonstrations(), settings, identity, seed=0, offline=True)
    assert data.reported is not None
    training, chosen_by = episodes_of(data, held_out=False), episodes_of(data, held_out=True)
    reported = set(data.reported.episode.tolist())
    assert [len(episodes) for episodes in (training, chosen_by, reported)] == [3, 1, 2]
    assert training | chosen_by | reported == set(range(6))
    given = demonstrations()
    for i, row in enumerate(data.reported.row):
        episode = data.reported.episode[i]
        assert ENDS[episode] - LENGTHS[episode] < row and row + 2 <= ENDS[episode]
        np.testing.assert_array_equal(data.reported.state[i], given.state[[row - 1, row]])
        np.testing.assert_array_equal(data.reported.action[i], given.action[[row, row + 1]])
        np.testing.assert_array_equal(data.reported.previous[i], given.action[row - 1])
    assert len(data.reported.row) == sum(LENGTHS[episode] - 2 for episode in reported)


def test_time_series_split_holds_out_the_last_episodes_without_padding() -> None:
    settings = SETTINGS.model_copy(update={"validation_fraction": 0.5, "horizon": 2})
    data = prepare(demonstrations(), settings, identity, seed=0, offline=True, series=True)
    assert data.reported is not None
    assert (episodes_of(data, held_out=False), episodes_of(data, held_out=True)) == ({0, 1, 2}, {3})
    assert set(data.reported.episode.tolist()) == {4, 5}
    assert len(data.action) == sum(LENGTHS[episode] - 2 for episode in range(3))


def test_too_few_or_too_short_reported_episodes_are_refused() -> None:
    def refused(line: str, **changes: float) -> None:
        with pytest.raises(UserError, match=line):
            prepare(demonstrations(), SETTINGS.model_copy(update=changes), identity, seed=0, offline=True)

    refused(r"leaves at least one for training beside two held out$", validation_fraction=0.99)
    refused(r"^data.horizon: given 8, allowed: below the \d steps of episode \d, which is held out", horizon=8)
