"""Make Robomimic's tasks in robosuite: their settings as in public files, and the simulator itself.

An arm's action is absolute: the target of the grip site, held for 0.05 s by operational space control. It has position
(3) in metres and axis-angle (3) in radians, both in the world's frame, then the gripper (1), -1 open to +1 closed.
"""

import ctypes
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from types import ModuleType
from typing import Any, Literal

import numpy as np

Task = Literal["lift", "can", "square", "transport"]

ENV_NAME: dict[Task, str] = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "transport": "TwoArmTransport",
}
ARMS: dict[Task, int] = {"lift": 1, "can": 1, "square": 1, "transport": 2}
ARM_OBSERVATION = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}  # keys of each arm in the public order → sizes
ENV_VERSION = "1.4.1"  # version of robosuite
CONTROL_FREQUENCY = 20  # control steps per simulated second

_FIXED_MODELS = ("PickPlaceCan", "NutAssemblySquare")  # other tasks may draw new sizes of objects in each episode
_ROBOSUITE_TYPE = 1  # robomimic.envs.env_base.EnvType.ROBOSUITE_TYPE


def recipe(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``env_args`` of robosuite's environment ``name`` in the installed version."""
    return {"env_name": name, "env_version": ENV_VERSION, "type": _ROBOSUITE_TYPE, "env_kwargs": dict(arguments)}


def env_arguments(task: Task) -> dict[str, Any]:
    """Return the ``env_args`` of ``task``: those of the public low-dimensional files, with absolute actions."""
    arguments: dict[str, Any] = {
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "control_freq": CONTROL_FREQUENCY,
        "controller_configs": {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "kp": 150,
            "damping": 1,
            "impedance_mode": "fixed",
            "kp_limits": [0, 300],
            "damping_limits": [0, 10],
            "position_limits": None,
            "orientation_limits": None,
            "uncouple_pos_ori": True,
            "control_delta": False,
            "interpolation": None,
            "ramp_ratio": 0.2,
        },
        "robots": ["Panda"] * ARMS[task],
        "camera_depths": False,
        "camera_heights": 84,
        "camera_widths": 84,
        "reward_shaping": False,
    }
    if ARMS[task] == 2:
        arguments["env_configuration"] = "single-arm-opposed"
    return recipe(ENV_NAME[task], arguments)


def make_simulator(task: Task) -> Any:
    """Make the simulator of ``task``, see ``make_simulator_of``."""
    return make_simulator_of(env_arguments(task))


def make_simulator_of(arguments: Mapping[str, Any]) -> Any:
    """Make a simulator from ``env_args`` as robomimic does: an ``EnvRobosuite``, whose ``env`` is robosuite's own.

    Its steps reach the same states as robosuite's, bit for bit, in about half the time. Its observations are those of
    the state reached, as in the public files; robosuite's own are one physics step of 2 ms older.
    """
    _import_robosuite()
    import robomimic.utils.env_utils as env_utils

    with redirect_stdout(StringIO()), drawing_from(0):  # "Created environment with name ..."
        _declare_modalities()
        simulator = env_utils.create_env_from_metadata(env_meta=dict(arguments))
    simulator.env.step = partial(_step, simulator.env)
    return simulator


def reset_by_seed(simulator: Any, seed: int) -> dict[str, np.ndarray]:
    """Start the episode of ``seed`` in a simulator of ``make_simulator``; return robomimic's observation by key.

    Robosuite draws the arms' joints, the objects' poses and some objects' sizes from numpy's global generator. The
    generator is seeded for that and restored. The model is rebuilt (0.2 to 0.4 s) only if it depends on the draws.
    """
    env = simulator.env
    env.hard_reset = type(env).__name__ not in _FIXED_MODELS or getattr(env, "_model_is_stored", False)
    with drawing_from(seed):
        observation: dict[str, np.ndarray] = simulator.reset()
    env._model_is_stored = False
    _start_controllers(env)
    return observation


def reset_to_state(simulator: Any, state: np.ndarray, model: str | None = None) -> dict[str, np.ndarray]:
    """Start at a stored ``state`` in the stored ``model`` (XML; None: that of seed 0); return as ``reset_by_seed``.

    XML holds rounded numbers of a model. So a replay in a stored model is close to the original, but not equal to it.
    """
    if model is None:
        reset_by_seed(simulator, 0)
        observation: dict[str, np.ndarray] = simulator.reset_to({"states": state})
    else:
        simulator.env.hard_reset = False  # robomimic resets once more before it loads the model
        simulator.env._model_is_stored = True
        with drawing_from(0):
            observation = simulator.reset_to({"states": state, "model": model})
    _start_controllers(simulator.env)
    return observation


def _start_controllers(env: Any) -> None:
    """Give the controllers their start state, and the arms' nominal joint angles as target in their null space.

    Without this, after robosuite's ``reset`` a controller takes the drawn joint angles for nominal, unlike in the
    public demonstrations and robomimic's own rollouts. After ``reset_to`` it sees the state one physics step late.
    """
    for robot in env.robots:
        robot.controller.update_initial_joints(robot.init_qpos)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seed numpy's global generator with ``seed``, and restore its state at the end."""
    before = np.random.get_state()  # noqa: NPY002  (robosuite draws from the global generator)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _step(env: Any, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, dict[str, Any]]:
    """Run robosuite's control step of 25 physics steps, without its redundant computations.

    In each physics step, robosuite computes the forward dynamics at the start, once per arm's controller and once to
    integrate, and updates every observable. Positions and velocities do not change in between. Here they are computed
    once (``mj_step1``), the forces after the controllers (``mj_step2``), and the observables at the end.
    """
    import mujoco

    sim = env.sim
    model, data = sim.model._model, sim.data._data
    current = False

    def forward() -> None:
        nonlocal current
        if not current:
            mujoco.mj_step1(model, data)
            current = True

    def step() -> None:
        nonlocal current
        mujoco.mj_step2(model, data)
        current = False

    sim.forward, sim.step, env._update_observables = forward, step, lambda: None
    try:
        _, reward, done, info = type(env).step(env, action)
    finally:
        del sim.forward, sim.step, env._update_observables
    sim.forward()
    return env._get_observations(force_update=True), reward, done, info


def _declare_modalities() -> None:
    """Tell robomimic, once per process, that no observation is an image; without this it observes nothing."""
    import robomimic.utils.obs_utils as obs_utils

    if obs_utils.OBS_KEYS_TO_MODALITIES is None:
        low_dim = ["object", *(f"robot{arm}_{key}" for arm in range(2) for key in ARM_OBSERVATION)]
        obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": low_dim, "rgb": []}}])


def _import_robosuite() -> None:
    """Import robomimic's adapter of robosuite without mujoco-py and torch, and without EGL if that is absent.

    No task needs them. Robosuite loads EGL at import unless MUJOCO_GL names one of two other libraries. Of these, GLFW
    (``glx``) comes as a package.
    """
    library = os.environ.get("MUJOCO_GL")
    if sys.platform == "linux":
        os.environ["MUJOCO_GL"] = (library or "egl") if has_egl() else "glx"
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # both give advice on private macro files
    try:
        with redirect_stdout(StringIO()), _deferred("mujoco_py", "torch", "torch.nn", "torch.nn.functional"):
            import robomimic.envs.env_robosuite  # noqa: F401
    finally:
        logging.disable(disabled)
        if library is not None:
            os.environ["MUJOCO_GL"] = library


class _Deferred(ModuleType):
    """A module that is imported at the first access to one of its names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # code such as ``inspect`` looks at all modules
            raise AttributeError(name)
        _forget_deferred()
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _deferred(*names: str) -> Iterator[None]:
    """Defer imports of these modules inside the ``with`` block, installed or not; afterwards imports are as before.

    Robomimic needs torch, whose import takes a second, only for images, and mujoco-py only to name an exception.
    """
    modules = {name: _Deferred(name) for name in names if name not in sys.modules}
    for name, module in modules.items():
        package, _, own = name.rpartition(".")
        if package in modules:
            setattr(modules[package], own, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        _forget_deferred()


def _forget_deferred() -> None:
    for name, module in list(sys.modules.items()):  # a copy, since other threads may import
        if isinstance(module, _Deferred):
            del sys.modules[name]


def has_egl() -> bool:
    """Tell whether this machine can draw without a display; on Linux that needs EGL."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return True
