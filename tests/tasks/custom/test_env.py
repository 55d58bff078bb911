"""The adapter of Gymnasium environments, and the errors of blocks that do not fit them."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.tasks.camera import Camera
from pipeline.tasks.custom.check import check_fit
from pipeline.tasks.custom.env import GymnasiumEnv
from pipeline.tasks.custom.settings import Environment
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.utils.errors import UserError

STEP = 0.1


class Walk(gymnasium.Env[Any, Any]):
    """A point that is moved, and a goal: observed as a dictionary, solved within 0.05.

    Args:
        flaw: ``unseeded``: the goal ignores the seed; ``left_over``: it depends on the number of earlier episodes.
        camera: whether to observe an image too, whose brightness is the point's x.
    """

    def __init__(self, flaw: str = "", camera: bool = False, render_mode: str | None = None) -> None:
        box = partial(gymnasium.spaces.Box, -2.0, 2.0, dtype=np.float64)
        inner = gymnasium.spaces.Dict({"goal": box((2,)), "word": gymnasium.spaces.Text(3)})
        pixels = {"pixels": gymnasium.spaces.Box(0, 255, (20, 30, 3), np.uint8)} if camera else {}
        self.observation_space = gymnasium.spaces.Dict({"point": box((2,)), "task": inner, **pixels})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1, 2), np.float32)
        self.render_mode = render_mode
        self._flaw, self._camera, self._episodes = flaw, camera, 0
        self._point, self._goal = np.zeros(2), np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._episodes += 1
        generator = np.random.default_rng() if self._flaw == "unseeded" else self.np_random
        self._goal = generator.uniform(-1, 1, 2) + 0.01 * self._episodes * (self._flaw == "left_over")
        self._point = np.zeros(2)
        return self._observed(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._point = self._point + STEP * action[0]
        away = float(np.linalg.norm(self._point - self._goal))
        return self._observed(), -away, False, False, {"solved": away < 0.05, "away": away}

    def render(self) -> Any:
        return np.full((8, 8, 3), 9, np.uint8) if self.render_mode else None

    def _observed(self) -> dict[str, Any]:
        shade = np.clip(100 + 100 * self._point[0], 0, 255)
        pixels = {"pixels": np.full((20, 30, 3), shade, np.uint8)} if self._camera else {}
        return {"point": self._point.copy(), "task": {"goal": self._goal.copy(), "word": "go"}, **pixels}


gymnasium.register("Walk-v0", Walk)


def settings(**changes: Any) -> Environment:
    given = {"id": "Walk-v0", "observation": ["task/goal", "point"], "success": "solved", "max_steps": 40}
    return Environment.model_validate({key: value for key, value in (given | changes).items() if value != "left out"})


def solved_episode(env: GymnasiumEnv, seed: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]], Any]:
    """Return states, actions and the last transition of a controller that moves to the goal."""
    states, actions = [env.reset(seed)], []
    while True:
        actions.append(np.clip((states[-1][:2] - states[-1][2:]) / STEP, -0.9, 0.9))
        transition = env.step(actions[-1])
        if transition.done:
            return states, actions, transition
        states.append(transition.observation)


def demonstrations(seeds: range = range(20)) -> Demonstrations:
    env = GymnasiumEnv(settings(), 40)
    episodes = [solved_episode(env, seed)[:2] for seed in seeds]
    return Demonstrations(
        np.concatenate([states for states, _ in episodes]).astype(np.float32),
        np.concatenate([actions for _, actions in episodes]).astype(np.float32),
        np.cumsum([len(actions) for _, actions in episodes]),
    )


def test_observations_are_flattened_in_order_and_success_ends_an_episode() -> None:
    env = GymnasiumEnv(settings(), 40)
    assert env.observation_dim == 4
    states, _, last = solved_episode(env, 7)
    np.testing.assert_array_equal(states[0][2:], [0, 0])
    assert last.success and last.score == 1 and len(states) < 40
    np.testing.assert_allclose(last.observation[:2], last.observation[2:], atol=0.05)


def test_episode_ends_unsolved_after_max_steps() -> None:
    env = GymnasiumEnv(settings(), 3)
    env.reset(0)
    transitions = [env.step(np.zeros(2)) for _ in range(3)]
    assert [transition.done for transition in transitions] == [False, False, True]
    assert [transition.score for transition in transitions] == [0, 0, 0]


def test_actions_are_clipped_to_the_bounds() -> None:
    env = GymnasiumEnv(settings(), 3)
    env.reset(0)
    np.testing.assert_allclose(env.step(np.array([5.0, -5.0])).observation[2:], [STEP, -STEP])


def test_return_is_scaled_to_the_episodes_score() -> None:
    env = GymnasiumEnv(settings(success="left out", returns=[-10, 0]), 4)
    env.reset(3)
    transitions = [env.step(np.zeros(2)) for _ in range(4)]
    goal = transitions[0].observation[:2]
    assert [transition.score for transition in transitions[:3]] == [0, 0, 0]
    assert transitions[-1].score == pytest.approx(1 - 4 * np.linalg.norm(goal) / 10)
    assert not transitions[-1].success


def test_rendering_needs_a_render_mode() -> None:
    env = GymnasiumEnv(settings(), 4)
    env.reset(0)
    assert env.render().shape == (8, 8, 3)
    env = GymnasiumEnv(settings(render_mode=None), 4)
    env.reset(0)
    with pytest.raises(UserError, match=r"custom\.environment\.render_mode: Walk-v0 draws NoneType"):
        env.render()


def test_observed_image_follows_the_numbers_in_the_raw_observation() -> None:
    watched = settings(arguments={"camera": True}, image={"pixels": 16})
    env, camera = GymnasiumEnv(watched, 4), Camera(numbers=4, side=16)
    first = env.reset(0)
    assert env.observation_dim == 4 and first.shape == (camera.raw_dim,)
    assert camera.draw(first).min() == camera.draw(first).max() == 100
    after = env.step(np.ones(2)).observation
    assert camera.draw(after).max() == 110
    np.testing.assert_allclose(camera.encode(after)[2:], STEP)
    check_fit(watched, demonstrations())
    with pytest.raises(UserError, match=r"image: given 'point', allowed: pictures, uint8 .* of Walk-v0: pixels"):
        GymnasiumEnv(settings(arguments={"camera": True}, image={"point": 16}), 4)
    with pytest.raises(UserError, match=r"image: given 'pixels', allowed: pictures, uint8 .* of Walk-v0: it has none"):
        GymnasiumEnv(settings(image={"pixels": 16}), 4)


def test_environment_can_be_pickled_for_workers() -> None:
    make = partial(GymnasiumEnv, settings(id="Reacher-v5", observation=[], success="left out", returns=[-50, 0]))
    env = pickle.loads(pickle.dumps(make))(50)
    assert env.reset(0).shape == (10,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"id": "Wolk-v0"},
            r"environment\.id: given 'Wolk-v0', which is unknown: .*Wolk.* doesn't exist.*; custom\.env",
        ),
        ({"id": "nowhere/Walk-v0"}, r"environment\.id: given 'nowhere/Walk-v0', which is unknown"),
        ({"id": "not_there:Walk-v0"}, r"environment\.id: given 'not_there:Walk-v0', which is unknown: No module"),
        ({"module": "not_there"}, r"environment\.module: 'not_there' cannot be imported: No module named 'not_there'"),
        ({"arguments": {"colour": 1}}, r"environment: Walk-v0 cannot be made: .*colour"),
        ({"observation": []}, r"observation: given none, allowed: keys .* Walk-v0: point, task/goal, task/word"),
        ({"observation": ["goal"]}, r"observation: given 'goal', which .*: point, task/goal, task/word"),
        ({"observation": ["task/word"]}, r"observation: task/word of Walk-v0 is Text.*, no vector"),
        ({"id": "Reacher-v5"}, r"observation: given 'task/goal', which .* Reacher-v5 .*, they are one array"),
        (
            {"id": "CartPole-v1", "observation": []},
            r"environment\.id: CartPole-v1 has actions Discrete.2., allowed: a Box",
        ),
    ],
)
def test_block_that_does_not_fit_the_environment_gives_a_one_line_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GymnasiumEnv(settings(**changes), 40)
    assert "\n" not in str(caught.value)


def test_module_that_fails_on_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_robot.py").write_text("raise OSError('no driver\\nfound')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"module: 'broken_robot' cannot be imported: no driver found"):
        GymnasiumEnv(settings(module="broken_robot"), 40)


def test_success_key_missing_from_info_is_reported() -> None:
    env = GymnasiumEnv(settings(success="is_success"), 40)
    env.reset(0)
    with pytest.raises(UserError, match=r"success: given 'is_success', allowed: a key of info: solved, away"):
        env.step(np.zeros(2))


def test_matching_data_and_environment_pass_the_check(recwarn: pytest.WarningsRecorder) -> None:
    check_fit(settings(), demonstrations())
    assert [str(warning.message) for warning in recwarn if "demonstrat" in str(warning.message)] == []


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("unseeded", r"Walk-v0 is not reproducible: .* differ from step 0 on; it draws from more than its seed"),
        ("left_over", "Walk-v0 is not reproducible: .*; an episode before it changes it"),
    ],
)
def test_irreproducible_episodes_are_refused(flaw: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_fit(settings(arguments={"flaw": flaw}), demonstrations())


def test_data_of_another_environment_are_refused() -> None:
    mine = demonstrations()
    with pytest.raises(UserError, match="observations of Reacher-v5 have 10 numbers, those of the demonstrations 4"):
        check_fit(settings(id="Reacher-v5", observation=[], success="left out", returns=[-50, 0]), mine)
    with pytest.raises(UserError, match="actions of Walk-v0 have 2 numbers, those of the demonstrations 4"):
        check_fit(settings(), Demonstrations(mine.state, mine.state, mine.episode_ends))
    with pytest.raises(
        UserError, match=r"component 0 of the demonstrated actions reaches -9 to 9, Walk-v0 takes -1 to 1"
    ):
        check_fit(settings(), Demonstrations(mine.state, 10 * mine.action, mine.episode_ends))
    far = Demonstrations(mine.state + 9, mine.action, mine.episode_ends)
    with pytest.raises(UserError, match=r"4 of 4 observed numbers are far from all .*; the data set is of another"):
        check_fit(settings(), far)
    state = mine.state + np.array([9, 0, 0, 0], np.float32)
    with pytest.warns(UserWarning, match="1 of 4 observed numbers are far from all demonstrated when"):
        check_fit(settings(), Demonstrations(state, mine.action, mine.episode_ends))


class Made(gymnasium.Env[Any, Any]):
    """A point on a line, whose goal is drawn in the constructor; observations leave the declared bounds."""

    observation_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, seed: int) -> None:
        self._goal, self._point = float(np.random.default_rng(seed).uniform(-1, 1)), 0.0

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self._point = 0.0
        return np.array([self._goal, 0.0]), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._point += STEP * float(action[0])
        observed = np.array([self._goal, self._point])
        return observed, 0.0, False, False, {"success": float(abs(self._goal - self._point) < 0.05)}


gymnasium.register("Made-v0", Made)
MADE = {"id": "Made-v0", "seed_argument": "seed", "success": "success", "max_steps": 40, "render_mode": None}


def test_environment_seeded_in_its_constructor_is_rebuilt_for_each_seed() -> None:
    made = Environment.model_validate(MADE)
    env, other = GymnasiumEnv(made, 40), GymnasiumEnv(made, 40)
    starts = [env.reset(seed) for seed in (3, 4, 3)]
    np.testing.assert_array_equal(starts[0], starts[2])
    np.testing.assert_array_equal(starts[0], other.reset(3))
    assert starts[0][0] != starts[1][0]
    with pytest.raises(UserError, match=r"cannot be made: .*seed"):
        GymnasiumEnv(made.model_copy(update={"seed_argument": None}), 40)


def test_observations_may_leave_the_bounds_of_their_space() -> None:
    made = Environment.model_validate(MADE)
    env = GymnasiumEnv(made, 40)
    episodes = []
    for seed in range(20):
        states = [env.reset(seed)]
        while not (transition := env.step(np.sign(states[-1][:1] - states[-1][1:]))).done:
            states.append(transition.observation)
        assert transition.success
        episodes.append(np.stack(states).astype(np.float32))
    states = np.concatenate(episodes)
    assert np.abs(states).max() > 0.9
    actions = np.sign(states[:, :1] - states[:, 1:])
    check_fit(made, Demonstrations(states, actions, np.cumsum([len(episode) for episode in episodes])))
