"""Parts of the scripted experts for Square and Transport: chosen yaws, and the lid of the bin."""

import numpy as np

from pipeline.experts.robomimic_square import choose_yaws
from pipeline.experts.robomimic_transport import Variation, open_bin
from pipeline.experts.waypoints import OPEN, Arm, hold, together
from pipeline.tasks.robomimic.env import Robomimic

SEED = 300_000


def test_chosen_yaws_avoid_the_far_side_and_the_wrist_limits() -> None:
    random = np.random.RandomState(0)
    for nut_yaw in np.linspace(-np.pi, np.pi, 73):
        hand_yaw, goal = choose_yaws(nut_yaw, random)
        assert np.cos(goal) < 0.5
        np.testing.assert_allclose(abs(np.sin(hand_yaw - nut_yaw)), 1.0)  # the fingers close across the handle
        first = np.angle(np.exp(1j * (hand_yaw - np.pi / 2)))
        last = first + np.angle(np.exp(1j * (goal - nut_yaw)))
        assert max(abs(first), abs(last)) < np.deg2rad(125)


def test_the_first_arm_puts_the_lid_beside_the_bin() -> None:
    task = Robomimic("transport")
    task.reset(seed=SEED)
    env = task.simulator.env
    second = Arm(env, 1)
    script = together(
        open_bin(env, Arm(env, 0), Variation.drawn(np.random.RandomState(0))), hold(second, second.pose, OPEN, 1)
    )
    before = np.array(env.transport.lid_handle_pos)
    for steps, action in enumerate(script):
        assert steps < 150
        task.simulator.step(action)
    after = np.array(env.transport.lid_handle_pos)
    np.testing.assert_allclose(after, [-0.2, -0.45, 0.825], atol=0.05)
    assert before[2] - after[2] > 0.1
