"""The shipped starter demonstrations: solved episodes that replay in the simulator."""

import numpy as np
import pytest

from pipeline.tasks.pusht.env import PushT, initial_state
from pipeline.tasks.pusht.files import read_pusht
from pipeline.utils.code_deps import ROOT

SHIPPED = ROOT / "data" / "demonstrations" / "pusht_starter.npz"
PIXELS = 1e-4  # tolerance of a replayed state; the stored one is rounded to float32 (3e-5 at 512)


def test_seeds_are_distinct_and_reserved_for_demonstrations() -> None:
    with np.load(SHIPPED) as file:
        assert len(file["seed"]) == len(file["max_score"]) == len(file["episode_ends"])
        assert len(set(file["seed"])) == len(file["seed"])
        assert file["seed"].min() >= 300_000  # neither test nor validation seeds


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_replayed_episode_reaches_stored_states_and_score(share: float) -> None:
    demonstrations = read_pusht(SHIPPED)
    episode = round(share * (demonstrations.n_episodes - 1))
    steps = demonstrations.episode(episode)
    with np.load(SHIPPED) as file:
        seed, max_score = int(file["seed"][episode]), file["max_score"][episode]

    simulation = PushT()
    states, scores = [simulation.reset(initial_state("b", seed))], []
    for action in demonstrations.action[steps]:
        transition = simulation.step(action)
        states.append(transition.observation)
        scores.append(transition.score)

    assert np.abs(np.array(states[:-1]) - demonstrations.state[steps]).max() <= PIXELS
    assert np.float32(max(scores)) == max_score
    assert transition.success
