"""A scripted expert for Franka Kitchen that reads the simulator's state: four tasks in an order drawn from the seed.

For each task the arm moves in joint space to a place in front of the object. Then inverse kinematics moves the hand
relative to the object's present position, until the object is at its goal. Failed tasks are tried again.

As in the public demonstrations, the microwave or the kettle comes first, or both, and the objects above the stove
follow. The order, the speed, the grasp and its direction vary from episode to episode.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.experts.arm import Arm
from pipeline.experts.episode import Expert, ExpertEpisode
from pipeline.experts.kitchen_skills import SKILLS, Phase, Skill, hand_rotation
from pipeline.tasks.kitchen.env import ACTION_DIM, CONTROL_SECONDS, ENOUGH, GOALS, MAX_VELOCITY, Kitchen
from pipeline.tasks.kitchen.files import write_kitchen

Vector = NDArray[np.float64]

ACTION_NOISE = 0.02  # standard deviation, of actions in [-1, 1]; executed and recorded

BELOW = ("microwave", "kettle")
ABOVE = ("top burner", "light switch", "slide cabinet")
BOTH_BELOW = 0.75  # probability that both tasks below are done, and not just one

ATTEMPTS = 2  # at a task before the next task is tried
MAX_JOINT_STEP = 0.07  # radians a control step; the action's range allows 0.08 without load
MAX_STEPS_TO_START, MAX_STEPS_AWAY = 60, 12
NEAR_ANGLES, NEAR, NEAR_AWAY = 0.03, 0.012, 0.03  # radians, metres, metres: tolerances at the end of a leg
FINGERS_STILL = 0.006  # metres, tolerance of each finger's position

_REACH = MAX_VELOCITY * CONTROL_SECONDS  # largest distance of a joint's target from its sensed angle in a control step
_LEAD = 2.0  # servo target over the wanted joint step, because a servo goes half the way in a control step


@dataclass(frozen=True)
class Variation:
    """Differences between episodes, besides the jitter of each attempt.

    Attributes:
        order: of the tasks.
        hand_speed: metres a control step, for motion relative to an object.
        joint_speed: radians a control step, for motion to an object.
    """

    order: tuple[str, ...]
    hand_speed: float
    joint_speed: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Variation":
        """Draw the tasks, those below before those above, and the speeds."""
        below = generator.permutation(BELOW)[: 2 if generator.random() < BOTH_BELOW else 1]
        above = generator.permutation(ABOVE)[: ENOUGH - len(below)]
        order = (*map(str, below), *map(str, above))
        return cls(order, generator.uniform(0.028, 0.036), generator.uniform(0.06, 0.075))


class Command(NamedTuple):
    """Command to the arm for one control step."""

    joint_step: Vector  # (7,) radians
    fingers: float  # wanted distance of each finger from the middle, metres


def demonstrate(seed: int, action_noise: float = ACTION_NOISE) -> ExpertEpisode:
    """Play the episode ``seed`` up to the fourth completed task or the last step.

    The sensors' noise, the expert's variation and the actions' noise are functions of the seed.
    """
    kitchen = _kitchen()
    sensed, data = kitchen.reset(seed=seed), kitchen.simulation.data
    generator = np.random.default_rng(seed)
    arm = Arm(kitchen.simulation.model, "end_effector")
    arm.observe(data.qpos)
    observations: list[Vector] = []
    actions: list[NDArray[np.float32]] = []
    score, success = 0.0, False
    for command in _Expert(kitchen, arm, Variation.draw(generator), generator).commands():
        action = action_for(command, arm, sensed) + action_noise * generator.standard_normal(ACTION_DIM)
        observations.append(sensed)
        actions.append(np.clip(action, -1.0, 1.0).astype(np.float32))  # as in files, so that a replay is exact
        sensed, score, success, done = kitchen.step(actions[-1])
        arm.observe(data.qpos)
        if done:
            break
    return ExpertEpisode(seed, np.stack(observations), np.stack(actions), success, score)


def write(path: Path, episodes: Sequence[ExpertEpisode]) -> None:
    """Write episodes in the public form, as ``write_kitchen`` does."""
    write_kitchen(path, [episode.observations for episode in episodes], [episode.actions for episode in episodes])


def action_for(command: Command, arm: Arm, sensed: Vector) -> Vector:
    """Compute the action (9,) that makes the servos do ``command``, given the noisy observation ``sensed`` (60,)."""
    # all joints slow down together, since clipping only the fastest would bend the hand's path
    step = _limited(command.joint_step, MAX_JOINT_STEP)
    target = np.concatenate([arm.angles + _LEAD * step + arm.gravity_sag(), np.full(2, command.fingers)])
    return np.clip((target - sensed[:ACTION_DIM]) / _REACH, -1.0, 1.0)


class _Expert:
    """Generators of commands: each command is computed from the arm's latest observation."""

    def __init__(self, kitchen: Kitchen, arm: Arm, variation: Variation, generator: np.random.Generator) -> None:
        self._kitchen = kitchen
        self._positions = kitchen.simulation.data.qpos
        self._arm = arm
        self._variation = variation
        self._generator = generator

    def commands(self) -> Iterator[Command]:
        """Yield commands without end; the episode ends by its own rules."""
        while True:
            for task in self._variation.order:
                for _ in range(ATTEMPTS):
                    if task not in self._kitchen.completed:
                        yield from self._attempt(task)

    def _attempt(self, task: str) -> Iterator[Command]:
        skill = SKILLS[task]
        yaw, pitch, turn = np.array(skill.direction) + self._jitter(0.06)
        hold = self._jitter(0.004)
        start = self._arm.site(skill.site) + skill.approach + self._jitter(0.015)
        angles = self._arm.solve(start, hand_rotation(yaw, pitch, turn), np.array(skill.posture))
        yield from self._reach(angles, skill.phases[0].fingers)
        for phase in skill.phases:
            rotation = hand_rotation(yaw, pitch, turn + phase.turn)
            yield from self._lead(task, skill, phase, rotation, hold)
        yield from self._withdraw(skill)

    def _reach(self, angles: Vector, fingers: float) -> Iterator[Command]:
        """Move all joints to ``angles`` (7,) at once, along a line in joint space."""
        for _ in range(MAX_STEPS_TO_START):
            rest = angles - self._arm.angles
            if np.abs(rest).max() < NEAR_ANGLES:
                return
            yield Command(_limited(rest, self._variation.joint_speed), fingers)

    def _lead(self, task: str, skill: Skill, phase: Phase, rotation: Vector, hold: Vector) -> Iterator[Command]:
        for _ in range(phase.patience):
            target = self._arm.site(skill.site) + phase.offset + hold
            if self._moved(task, skill) if phase.acting else self._arrived(target, phase.fingers):
                return
            step = self._arm.joint_step(target, rotation, np.array(skill.posture), self._variation.hand_speed)
            yield Command(step, phase.fingers)

    def _withdraw(self, skill: Skill) -> Iterator[Command]:
        target, rotation = self._arm.position + skill.retreat, self._arm.rotation
        for _ in range(MAX_STEPS_AWAY):
            if np.linalg.norm(target - self._arm.position) < NEAR_AWAY:
                return
            step = self._arm.joint_step(target, rotation, np.array(skill.posture), self._variation.hand_speed)
            yield Command(step, skill.phases[-1].fingers)

    def _moved(self, task: str, skill: Skill) -> bool:
        joints, goal = GOALS[task]
        return bool(np.linalg.norm(self._positions[list(joints)] - goal) < skill.margin)

    def _arrived(self, target: Vector, fingers: float) -> bool:
        still = np.abs(self._positions[7:9] - fingers).max() < FINGERS_STILL
        return bool(still and np.linalg.norm(target - self._arm.position) < NEAR)

    def _jitter(self, largest: float) -> Vector:
        return self._generator.uniform(-largest, largest, 3)


@cache
def _kitchen() -> Kitchen:
    return Kitchen()


def _limited(step: Vector, largest: float) -> Vector:
    """Scale ``step`` down so that no component exceeds ``largest``."""
    return step * min(1.0, largest / max(float(np.abs(step).max()), 1e-9))


EXPERT = Expert(demonstrate, write)
