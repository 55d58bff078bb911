"""Requirements of every task; of your own: ``FLOWTUNE_TASK=module:name pytest tests/tasks/test_conformance.py``.

The variable names one task, as the key ``task`` in params.yaml does, or a block with its scale, such as
``metaworld.push``. Without it all tasks of this project are tested, and the ``BLOCKS``.
"""

import os
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.experts.episode import Expert
from pipeline.settings import schema
from pipeline.tasks.api import Env, EnvSpec, Task, Transition
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.download import fetch
from pipeline.tasks.loader import find, load_task, own_tasks
from pipeline.tasks.normalizer import Normalizer
from tests.project import ROOT

SEED, OTHER_SEED = 300_000, 300_001
STEPS = 6

BLOCKS = {"metaworld.pick_place": "metaworld"}
"""Blocks of params.yaml → the dependency group of their simulator."""

NAMES = [os.environ["FLOWTUNE_TASK"]] if "FLOWTUNE_TASK" in os.environ else [*own_tasks(), *BLOCKS]


@pytest.fixture(scope="module", params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    scale, _, block = request.param.partition(".")
    if request.param in BLOCKS:
        pytest.importorskip(BLOCKS[request.param], reason=f"`make env-{BLOCKS[request.param]}` installs it")
    settings = schema.load(ROOT / "params.yaml") if scale in get_args(schema.Scale) else None
    return settings.block(scale).task(block).load_task() if settings else load_task(request.param)


@pytest.fixture(scope="module")
def demonstrations(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    """Return the demonstrations of the first data set whose file is on this machine."""
    for name, data_set in task.datasets.items():
        file = data_set.shipped or data_set.made or data_set.local
        if file is not None and Path(file).exists():
            return data_set.read(fetch(name, data_set, tmp_path_factory.mktemp("fetched") / "set"))
    pytest.skip("none of the task's data sets is on this machine; one with a file here would be read")


def environments(task: Task) -> Iterator[tuple[EnvSpec, Env]]:
    """Yield each environment of the task, made from a pickled factory as in a worker process."""
    for spec in task.envs.values():
        yield spec, pickle.loads(pickle.dumps(spec.factory().make_env))()


def played(task: Task, spec: EnvSpec, env: Env, actions: NDArray[np.floating], seed: int) -> list[Transition]:
    arguments = spec.factory(task.options_from({})).reset_arguments(seed)
    first = Transition(env.reset(**arguments), 0.0, False, False)
    return [first, *map(env.step, actions)]


def some_actions(demonstrations: Demonstrations) -> NDArray[np.float32]:
    """Return demonstrated actions in random order."""
    return np.random.default_rng(0).permutation(demonstrations.action)[:STEPS]


def test_task_description_is_complete(task: Task) -> None:
    assert task.title and task.datasets and task.observations and task.action_dim >= 1
    assert all(data_set.title and data_set.licence and data_set.citation for data_set in task.datasets.values())
    assert "" not in task.envs or len(task.envs) == 1
    assert (task.options_from({}) is None) == (task.options is None)
    if task.paper:
        assert task.paper.dataset in task.datasets
        assert set(task.paper.columns) <= set(task.envs) and set(task.paper.observations) <= set(task.observations)
    if task.expert:
        found = find(task.expert)
        assert isinstance(found, Expert) or callable(found), (
            "an expert, or a function that makes one from a block custom"
        )


def test_offline_task_has_no_environments(task: Task) -> None:
    assert task.offline == (not task.envs) == (not task.evaluations("block"))
    if task.offline:
        assert task.options is None and not task.subtasks, "options and subtasks need a simulation"


def test_demonstrations_fit_the_task(task: Task, demonstrations: Demonstrations) -> None:
    state, action, ends = demonstrations.state, demonstrations.action, demonstrations.episode_ends
    assert (state.dtype, action.dtype, ends.dtype) == (np.float32, np.float32, np.int64)
    assert action.shape == (len(state), task.action_dim) and state.ndim == 2
    assert (np.diff(ends, prepend=0) > 0).all() and ends[-1] == len(state)
    assert np.isfinite(state).all() and np.isfinite(action).all()
    if task.action_bounds:
        low, high = (np.asarray(bound) for bound in task.action_bounds)
        assert low.shape == high.shape == (task.action_dim,)
        assert (action >= low).all() and (action <= high).all()


def test_observations_do_not_depend_on_the_batch_shape(task: Task, demonstrations: Demonstrations) -> None:
    states = demonstrations.state[:6]
    for kind in task.observations.values():
        encoded = kind.encode(states)
        assert encoded.shape == (6, kind.dim) and encoded.dtype == np.float32
        np.testing.assert_array_equal(kind.encode(states.reshape(2, 3, -1)), encoded.reshape(2, 3, -1))
        np.testing.assert_array_equal(np.stack([kind.encode(state) for state in states]), encoded)
        if kind.render:
            images = kind.render(states)
            assert images.dtype == np.uint8 and images.shape[0] == 6 and images.shape[3] == 3
            np.testing.assert_array_equal(kind.render(states[:1]), images[:1])


def test_normalisation_is_invertible_and_stays_in_the_unit_box(task: Task, demonstrations: Demonstrations) -> None:
    encoded = {name: kind.encode(demonstrations.state) for name, kind in task.observations.items()}
    for name, values in {**encoded, "action": demonstrations.action}.items():
        data = torch.from_numpy(values)
        least = 1e-6 if name == "action" else task.least_variation
        normalizer = Normalizer.fit(data, least)
        normalized = normalizer.normalize(data)
        scale = float(normalizer.scale.max() + normalizer.offset.abs().max())
        torch.testing.assert_close(normalizer.denormalize(normalized), data, rtol=1e-5, atol=1e-6 * scale)
        assert float(normalized.abs().max()) <= 1 + 1e-3
        assert bool((normalized.amax(0) - normalized.amin(0) > 0).any()), f"{name}: nothing varies"


def test_environments_match_the_demonstrations(task: Task, demonstrations: Demonstrations) -> None:
    for spec, env in environments(task):
        transitions = played(task, spec, env, some_actions(demonstrations), SEED)
        for transition in transitions:
            assert transition.observation.shape == demonstrations.state.shape[1:]
            assert transition.observation.dtype == np.float64 and np.isfinite(transition.observation).all()
            assert 0 <= transition.score <= 1


def test_episodes_are_reproducible_by_seed(task: Task, demonstrations: Demonstrations) -> None:
    """Repeat an episode in the same environment after another episode, and in a new environment."""
    actions = some_actions(demonstrations)
    for (spec, env), (_, other) in zip(environments(task), environments(task), strict=True):
        first = played(task, spec, env, actions, SEED)
        played(task, spec, env, actions[::-1], OTHER_SEED)
        for again in (played(task, spec, env, actions, SEED), played(task, spec, other, actions, SEED)):
            for one, two in zip(first, again, strict=True):
                np.testing.assert_array_equal(one.observation, two.observation)
                assert one[1:] == two[1:]


def test_episodes_end_at_the_step_limit(task: Task, demonstrations: Demonstrations) -> None:
    for spec in task.envs.values():
        short = spec.factory(task.options_from({}), max_steps=2)
        assert short.max_steps == 2 and spec.factory(task.options_from({})).max_steps == spec.max_steps
        env = short.make_env()
        env.reset(**short.reset_arguments(SEED))
        steps = [env.step(action) for action in islice(some_actions(demonstrations), 2)]
        assert [step.done for step in steps if not step.success][-1:] == [True] or steps[-1].success
