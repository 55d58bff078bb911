"""Make the input file of every stage: JSON with its declared settings and digests of its code.

Stage ``resolve`` writes the files, ``data/inputs/<scale>/<stage>-<…>.json``. DVC re-runs a stage when its own file
changed. A program reads its settings only from its file. A setting that ``kinds`` does not declare is missing there.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pipeline.settings.blocks import Block
from pipeline.settings.kinds import EXECUTION, KINDS, STUDY_KINDS, Kind
from pipeline.settings.one_step import BASELINES
from pipeline.settings.robots import TaskSettings
from pipeline.settings.schema import LISTS, ScaleSettings, Settings
from pipeline.tasks.loader import file_of, load_task, own_tasks
from pipeline.utils.code_deps import digests_of
from pipeline.utils.errors import UserError

FOLDER = Path("data", "inputs")
EXECUTION_FILE = "execution.json"
"""File beside the inputs of a scale, with the settings that change no result."""
_EXPERT = Kind("demonstrate", (), modules=("pipeline.kinds.demonstrate_expert",))


@dataclass(frozen=True)
class Inputs:
    """The inputs of one stage.

    Attributes:
        program: the file that it runs, such as ``stages/train.py``.
        settings: the settings of its scale; only the declared ones are set.
        params: the declared settings as plain values.
        path: the input file; None: the program is no stage of a pipeline.
        roots: files that decide its result with all that they import; empty: the program alone does.
    """

    program: str
    settings: ScaleSettings
    params: Mapping[str, Any]
    path: Path | None = None
    roots: Sequence[str] = ()

    @property
    def code(self) -> dict[str, str]:
        """Digest the files that the stage runs, as they are now; see ``code_of``."""
        return _code(self.roots or [self.program], self.params)

    @property
    def shown(self) -> dict[str, Any]:
        """Return the declared settings; if all are of one task, by their keys within its block."""
        blocks = [value for value in self.params.values() if isinstance(value, Mapping)]
        lists = {name: value for name, value in self.params.items() if not isinstance(value, Mapping)}
        return {**lists, **blocks[0]} if len(blocks) == 1 else dict(self.params)


def read_inputs(stage: str, scale: str, *names: object) -> Inputs:
    """Read the inputs of one stage.

    Args:
        stage: its kind in dvc.yaml.
        names: the instance of the stage, such as a task and a number of function evaluations.

    Raises:
        UserError: the file is missing or damaged; the line says what to run and which instances exist.
    """
    folder = FOLDER / scale
    path = folder / f"{'-'.join([stage, *map(str, names)])}.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(other.stem.removeprefix(f"{stage}-") for other in folder.glob(f"{stage}-*.json"))
        others = f"; there are those of {', '.join(there)}" if there else ""
        raise UserError(
            f"{path}: not found; `dvc repro resolve` makes the inputs of what params.yaml lists at its scale{others}"
        ) from None
    except ValueError:
        raise UserError(f"{path}: is damaged; `dvc repro --force resolve` makes it anew") from None
    params = written["settings"]
    file = folder / EXECUTION_FILE
    execution = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    readable = _merged(
        params, {task: block for task, block in execution.items() if "evaluation" in params.get(task, {})}
    )
    program = f"stages/{written['program']}.py"
    return Inputs(program, built(ScaleSettings, readable), params, path, written.get("roots", ()))


def inputs_of(program: str, params: Mapping[str, Any]) -> Inputs:
    """Make the inputs of a ``program`` that is no stage of a pipeline; its arguments give ``params``."""
    return Inputs(program, built(ScaleSettings, {}), params)


def resolved_inputs(settings: Settings) -> dict[Path, str]:
    """Make every input file that ``settings`` need: path → text.

    These are the inputs of the current scale and its lists, of the studies at every scale, and of the scripted
    demonstrations, which belong to no scale.
    """
    files: dict[Path, str] = {}
    for scale in _scales(settings):
        tree = resolved(settings, scale)
        current = scale == settings.scale
        for path, kind, keys in _instances({**(KINDS if current else {}), **STUDY_KINDS}, scale, tree):
            files[path] = _text(kind, chosen(tree, keys))
        tasks = dict.fromkeys([*(tree["tasks"] if current else ()), *tree["studies"], *tree["one_step_tasks"]])
        if tasks:
            files[FOLDER / scale / EXECUTION_FILE] = _dump(
                chosen(tree, [f"{task}.{key}" for task in tasks for key in EXECUTION])
            )
    experts = {task: scripted(task) for task in own_tasks() if load_task(task).expert}
    for scale in _scales(settings):
        blocks = {name: block for name, block in settings.block(scale).robots.items() if block.custom}
        for name, block in blocks.items():
            if block.load_task().expert:
                experts[f"{scale}-{name}"] = scripted(name, block)
    for name, depends in experts.items():
        files[FOLDER / "demonstrations" / f"demonstrate_expert-{name}.json"] = _text(_EXPERT, depends)
    return files


def expert_inputs(name: str, block: TaskSettings | None, asked: Mapping[str, Any]) -> Inputs:
    """Make the inputs of a run of a scripted expert: ``scripted``, and the arguments ``asked`` of its program."""
    params = {**scripted(name, block), **asked}
    return Inputs(f"stages/{_EXPERT.program}.py", built(ScaleSettings, {}), params, roots=_EXPERT.code)


def scripted(name: str, block: TaskSettings | None = None) -> dict[str, Any]:
    """Return the settings that a scripted expert's demonstrations depend on, beside the program's arguments.

    Args:
        name: the name of a task, or of the ``block`` of params.yaml that describes one.
    """
    if block is None:
        return {name: {"task": name, "expert": load_task(name).expert}}
    custom = {key: value for key, value in (block.custom or {}).items() if key != "datasets"}
    return {name: {"task": block.task, "expert": block.load_task().expert, "custom": custom}}


def _scales(settings: Settings) -> list[str]:
    return [name for name, field in type(settings).model_fields.items() if field.annotation is ScaleSettings]


def resolved(settings: Settings, scale: str) -> dict[str, Any]:
    """Return all settings of a scale as plain values; the current scale has the lists at the top of params.yaml.

    Adds lists for the coupling study: ``studies`` (tasks that have it) and ``study_nfe`` (numbers that it has recipes
    for). Adds lists for the one-step study: ``one_step_tasks``, ``one_step_scales`` (this scale if there are such
    tasks), ``one_step_nfe`` (numbers that ft_fm is tuned for) and ``one_step_baselines``.
    """
    tree = settings.block(scale).model_dump()
    if scale == settings.scale:
        tree |= {name: getattr(settings, name) for name in LISTS}
    studies = {name: block["study"] for name, block in tree.items() if isinstance(block, dict) and block.get("study")}
    blocks = {name: block for name, block in tree.items() if isinstance(block, dict) and block.get("one_step")}
    one_step = [name for name, block in blocks.items() if block["one_step"]["train_seeds"]]
    numbers = (key.removeprefix("nfe") for study in studies.values() for key in study["recipes"])
    numbered = [int(number) for number in dict.fromkeys(numbers)]
    tuned = (key.removeprefix("nfe") for name in one_step for key in blocks[name]["one_step"]["recipes"])
    return tree | {
        "studies": list(studies),
        "study_nfe": numbered,
        "one_step_tasks": one_step,
        "one_step_scales": [scale] if one_step else [],
        "one_step_nfe": [int(number) for number in dict.fromkeys(tuned)],
        "one_step_baselines": list(BASELINES),
    }


def _instances(
    kinds: Mapping[str, Kind], scale: str, tree: Mapping[str, Any]
) -> Iterator[tuple[Path, Kind, list[str]]]:
    """Yield path, kind and keys of every input file of ``kinds``."""
    for stage, kind in kinds.items():
        for values in product(*(tree[name] for name in kind.over)):
            named = dict(zip(kind.over, values, strict=True))
            path = FOLDER / scale / f"{'-'.join([stage, *map(str, values)])}.json"
            yield path, kind, [key for template in kind.keys for key in _filled(template, named, tree)]


def _filled(template: str, named: Mapping[str, object], tree: Mapping[str, Any]) -> list[str]:
    """Fill ``template`` with the ``named`` values; a list that is not named gives one key for each of its values."""
    names = list(dict.fromkeys(re.findall(r"{(\w+)}", template)))
    choices = [[named[name]] if name in named else tree[name] for name in names]
    return [template.format(**dict(zip(names, values, strict=True))) for values in product(*choices)]


def chosen(tree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the part of ``tree`` that ``keys`` name."""
    part: dict[str, Any] = {}
    for key in keys:
        _copy(tree, key.split("."), part)
    return part


def _copy(tree: Mapping[str, Any], parts: list[str], into: dict[str, Any]) -> None:
    first, *rest = parts
    for name in list(tree) if first == "*" else [first]:
        if rest:
            _copy(tree[name], rest, into.setdefault(name, {}))
        else:
            into[name] = tree[name]


def _text(kind: Kind, settings: Mapping[str, Any]) -> str:
    roots = {"roots": kind.code} if kind.modules else {}
    return _dump({"program": kind.program, **roots, "settings": settings, "code": _code(kind.code, settings)})


def _code(roots: Sequence[str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Digest the code that ``roots`` run, including the tasks and experts that ``settings`` name."""
    blocks = [settings, *(value for value in settings.values() if isinstance(value, Mapping))]
    named = [block[key] for block in blocks for key in ("task", "expert") if isinstance(block.get(key), str)]
    return digests_of(*roots, *map(file_of, named))


def outdated_outside(settings: Settings, root: Path) -> list[str]:
    """List task files outside the library that changed since the inputs in the project ``root`` were made.

    DVC cannot see such a file among the dependencies of ``resolve``.
    """
    blocks = [block for scale in _scales(settings) for block in settings.block(scale).robots.values()]
    files = {file for file in (file_of(block.task) for block in blocks) if not file.startswith("pipeline/")}
    if not files:
        return []
    now = {name: each for name, each in digests_of(*files).items() if not name.startswith("pipeline/")}
    made_of = [json.loads(path.read_text(encoding="utf-8")).get("code", {}) for path in (root / FOLDER).rglob("*.json")]
    return sorted(name for name, each in now.items() if any(code.get(name, each) != each for code in made_of))


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``other`` into ``one``, block by block."""
    both = dict(one)
    for name, value in other.items():
        both[name] = _merged(one[name], value) if isinstance(one.get(name), dict) else value
    return both


def built(annotation: Any, value: Any) -> Any:
    """Build settings of the type ``annotation`` from plain values, without validation: they are part of a valid whole.

    Missing keys stay unset and raise an ``AttributeError`` when they are read.
    """
    if isinstance(annotation, type) and issubclass(annotation, Block) and isinstance(value, dict):
        fields = annotation.model_fields
        known = {name: fields[name].annotation if name in fields else TaskSettings for name in value}
        return annotation.model_construct(**{name: built(known[name], inner) for name, inner in value.items()})
    if get_origin(annotation) is dict and isinstance(value, dict):
        return {name: built(get_args(annotation)[1], inner) for name, inner in value.items()}
    if get_origin(annotation) in (Union, UnionType) and isinstance(value, dict):
        kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Block)]
        if not kinds:  # the task's own keys
            return value
        (fitting,) = [kind for kind in kinds if len(kinds) == 1 or value["kind"] in _literal(kind)]
        return built(fitting, value)
    if hasattr(annotation, "__metadata__"):
        return built(get_args(annotation)[0], value)
    return value


def _literal(kind: type[Block]) -> tuple[Any, ...]:
    return get_args(kind.model_fields["kind"].annotation)
