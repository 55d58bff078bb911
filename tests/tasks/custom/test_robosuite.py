"""robosuite environments rebuilt from the metadata of a robomimic file."""

from typing import Any

import numpy as np
import pytest

from pipeline.tasks.custom.check import check_fit
from pipeline.tasks.custom.env import GymnasiumEnv
from pipeline.tasks.custom.settings import Environment
from pipeline.tasks.formats.reading import open_recording
from pipeline.tasks.formats.recording import Recording
from pipeline.tasks.formats.vectors import read_demonstrations
from pipeline.tasks.robomimic.actions import policy_actions
from pipeline.tasks.robomimic.env import Robomimic
from pipeline.tasks.robomimic.simulator import has_egl
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
LIFT = ROOT / "data" / "demonstrations" / "lift_starter.hdf5"


def settings(recording: Recording, **changes: Any) -> Environment:
    given = {**(recording.environment or {}), "observation": list(KEYS), "max_steps": 200}
    return Environment.model_validate(given | changes)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return open_recording(LIFT)


def test_shipped_file_defines_its_environment(recording: Recording) -> None:
    environment = settings(recording)
    assert (environment.id, environment.success) == ("robosuite/Lift", "success")
    check_fit(environment, read_demonstrations(recording, [f"obs/{key}" for key in KEYS], "actions"))


def test_rebuilt_environment_equals_the_robomimic_task(recording: Recording) -> None:
    actions = read_demonstrations(recording, [f"obs/{key}" for key in KEYS], "actions").action[:5].astype(np.float64)
    env, task = GymnasiumEnv(settings(recording), 200), Robomimic("lift")
    np.testing.assert_array_equal(env.reset(200_000), task.reset(200_000))
    for action in actions:
        ours, theirs = env.step(action), task.step(policy_actions(action))
        np.testing.assert_allclose(ours.observation, theirs.observation, atol=1e-9)
        assert (ours.score, ours.done) == (theirs.score, theirs.done)


def test_unknown_robosuite_environment_or_key_is_refused(recording: Recording) -> None:
    with pytest.raises(UserError, match=r"custom\.environment: robosuite/Juggle cannot be made: .*Juggle"):
        GymnasiumEnv(settings(recording, id="robosuite/Juggle"), 200)
    with pytest.raises(UserError, match=r"observation: given 'wrist', which observations of robosuite/Lift lack"):
        GymnasiumEnv(settings(recording, observation=["wrist"]), 200)


@pytest.mark.skipif(not has_egl(), reason="this machine draws nothing without a display")
def test_rebuilt_environment_renders(recording: Recording) -> None:
    env = GymnasiumEnv(settings(recording), 200)
    env.reset(1)
    assert env.render().shape == (256, 256, 3)
