"""Blocks of robot tasks: free names, the choice of a task, and inputs that depend on that task's code only."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import schema
from pipeline.settings.inputs import FOLDER, outdated_outside, resolved_inputs
from pipeline.tasks.loader import file_of, own_tasks
from pipeline.utils import code_deps
from pipeline.utils.atomic import write_text
from pipeline.utils.code_deps import ROOT, code_of
from pipeline.utils.errors import UserError
from tests.settings.params import TEXT, changed, dumped, parsed, raw, refused, replaced
from tests.settings.test_inputs import at

DATA = {"dataset": "pusht_human", "observation": "pose"}
NARROW = {"task": "pusht", "data": DATA, "select": {"evaluation": "narrow_b"}}
CACHED = (code_deps.digest, code_deps.imports_of, code_deps._tree)
READS = ("pretrain", "evaluate_rollouts", "fetch")


def test_block_of_any_name_uses_the_task_in_its_task_key() -> None:
    narrow = parsed(changed("lab.narrow", NARROW)).lab.task("narrow")
    assert narrow.load_task() is parsed(TEXT).lab.task("pusht").load_task()
    assert (
        narrow.pretrain.lr == raw()["lab"]["robot"]["pretrain"]["lr"]
    )  # from the block of all tasks, not from pusht's
    values = raw()
    values["narrow"] = {"task": "pusht"}
    values["lab"]["narrow"] = {key: NARROW[key] for key in ("data", "select")}
    values["lab"]["lists"]["tasks"].append("narrow")
    assert parsed(dumped(values)).lab.chosen()["narrow"] == narrow


def test_listed_names_become_blocks_of_the_scales_robot_task() -> None:
    values = raw()
    robot = {**values["lab"]["robot"], "task": "pusht", "data": DATA, "title": "{Block} of {block-}"}
    robot["select"] = robot["select"] | {"evaluation": "{block}_b"}
    lists = values["metaworld"]["lists"] | {"tasks": ["one_arm", "pusht"], "nfe": [1]}
    values["metaworld"] = {"lists": lists, "robot": robot}
    found = parsed(dumped(values)).metaworld
    assert (found.task("one_arm").title, found.task("one_arm").select.evaluation) == ("OneArm of one-arm", "one_arm_b")
    assert found.task("one_arm").load_task() is found.task("pusht").load_task()
    lists["tasks"] = ["One-arm"]
    with pytest.raises(UserError, match="tasks: given 'One-arm', allowed: "):
        parsed(dumped(values))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("narrow", {"data": {}}, "narrow: unknown key; .*; or a new name, of small letters, digits and _, for a block"),
        ("lab.Narrow-1", NARROW, "lab.Narrow-1: unknown key; .*; or a new name, of small letters, digits and _"),
        ("lab.narrow", NARROW | {"task": "juggling"}, "lab.narrow.task: given 'juggling', allowed: can, kitchen, "),
        ("lab.narrow", NARROW | {"custom": {"a": 1}}, "lab.narrow.task: given 'pusht' with a block custom, allowed: "),
        (
            "lab.narrow",
            NARROW | {"data": {"dataset": "lift_ph"}},
            "dataset: given 'lift_ph', allowed for narrow: pusht_",
        ),
        ("lab.narrow", {"task": "kitchen"}, "lab.narrow.data.dataset: missing"),
        ("lab.pusht.data.observation", "state", "observation: given 'state', allowed for pusht: keypoints"),
        ("lab.kitchen.select", {"evaluation": "lift"}, "evaluation: given 'lift', allowed for kitchen: kitchen"),
        ("lab.pusht.evaluation.options", {"reset_order": "best"}, "reset_order: given 'best', allowed: exact, legacy"),
        ("lab.pusht.evaluation.options", {"order": "exact"}, "options.order: unknown key; .*allowed: reset_order"),
        ("lab.kitchen.evaluation.options", {"a": 1}, "options: given a, allowed: none; Franka Kitchen has no options"),
        ("lab.pusht_image.data.dataset", "pusht_human", "'pusht_human', allowed where images are seen: pusht_human_im"),
        ("lab.lists.tasks", ["juggling"], "tasks: given 'juggling', allowed: .*pusht, .*, or a new block of that name"),
    ],
)
def test_settings_that_the_task_lacks_are_refused(key: str, value: object, line: str) -> None:
    assert re.search(line, refused(changed(key, value)))


def test_block_named_after_a_task_defaults_to_that_task() -> None:
    assert parsed(replaced("  task: pusht  ", "  # task:     ")).lab == parsed(TEXT).lab


def inputs_of(settings: schema.Settings, task: str) -> dict[str, Any]:
    """Return the inputs of all stages of ``task``, and of its expert's demonstrations, by file name."""
    found = {path.stem: text for path, text in resolved_inputs(settings).items() if "code" in json.loads(text)}
    names = [name for name in found if task in name.partition("-")[2].split("-")]
    assert {f"{stage}-{task}" for stage in READS} <= set(names)
    return {name: found[name] for name in names}


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield a list; files in it have the digest of an edited file."""
    files: list[str] = []
    digest = code_deps.digest
    monkeypatch.setattr(code_deps, "digest", lambda file: f"edited {digest(file)}" if file in files else digest(file))
    yield files
    for cached in CACHED:
        cached.cache_clear()


def test_editing_a_task_makes_only_its_own_stages_stale(edited: list[str]) -> None:
    settings = at("lab").model_copy(update={"tasks": [*own_tasks()]})
    blocks = [*own_tasks(), "cifar10"]
    before = {block: images_or(settings, block) for block in blocks}
    for task in own_tasks():
        shared = {file for other in own_tasks() if other != task for file in code_of(file_of(other))}
        own = [file for file in code_of(file_of(task)) if file not in shared]
        assert file_of(task) in own
        edited[:] = own
        stale = [block for block in blocks if images_or(settings, block) != before[block]]
        assert stale == [task]
        assert all(text != before[task][name] for name, text in inputs_of(settings, task).items())


def images_or(settings: schema.Settings, block: str) -> dict[str, Any]:
    if block in own_tasks():
        return inputs_of(settings, block)
    return {path.stem: text for path, text in resolved_inputs(settings).items() if block in path.stem.split("-")}


def test_task_file_outside_the_project_is_tracked_as_code(tmp_path: Path) -> None:
    path = tmp_path / "a_task_outside.py"
    block = NARROW | {"task": f"{path}:TASK"}
    path.write_text("from pipeline.tasks.pusht import TASK\n", encoding="utf-8")
    settings = at("lab", changed("lab.narrow", block)).model_copy(update={"tasks": ["narrow"]})
    before = inputs_of(settings, "narrow")
    code = json.loads(before["pretrain-narrow"])["code"]
    assert path.name in code and file_of("pusht") in code
    path.write_text("from pipeline.tasks.pusht import TASK\n\nNOISE = 0.1\n", encoding="utf-8")
    for cached in CACHED:
        cached.cache_clear()
    assert inputs_of(settings, "narrow") != before
    for name, text in before.items():
        write_text(tmp_path / FOLDER / "lab" / f"{name}.json", text)
    narrow = parsed(changed("lab.narrow", block))
    assert outdated_outside(narrow, tmp_path) == [path.name] and outdated_outside(parsed(TEXT), tmp_path) == []
    for name, text in inputs_of(settings, "narrow").items():
        write_text(tmp_path / FOLDER / "lab" / f"{name}.json", text)
    assert outdated_outside(narrow, tmp_path) == []
    assert str(tmp_path) not in json.dumps({name: json.loads(text)["code"] for name, text in before.items()})
    assert ROOT not in path.parents
