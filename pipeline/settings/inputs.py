"""The inputs of every stage: the settings that it may read and digests of the code that it runs, one JSON file each.

Stage ``resolve`` writes the files, ``data/inputs/<scale>/<stage>-<…>.json``, and DVC re-runs a stage when its own file
changed. A program reads its settings from there and from nowhere else: a setting that ``kinds`` does not declare is not
there to be read.
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
"""Beside the inputs of a scale: the settings that change no result."""
_EXPERT = Kind("demonstrate_expert", ())


@dataclass(frozen=True)
class Inputs:
    """What one stage may read.

    Attributes:
        program: the file that it runs, such as ``stages/train.py``.
        settings: those of its scale, of which only the declared ones are there.
        params: the declared ones as plain values.
        path: the file that they come from; None: of a program that is no stage of a pipeline.
        roots: files that decide its result with all that they import; empty: the program alone does.
    """

    program: str
    settings: ScaleSettings
    params: Mapping[str, Any]
    path: Path | None = None
    roots: Sequence[str] = ()

    @property
    def code(self) -> dict[str, str]:
        """Digests of the files that it runs, as they are now; see ``code_of``."""
        return _code(self.roots or [self.program], self.params)

    @property
    def shown(self) -> dict[str, Any]:
        """The declared ones, named as within the task's block where they are of one task."""
        blocks = [value for value in self.params.values() if isinstance(value, Mapping)]
        lists = {name: value for name, value in self.params.items() if not isinstance(value, Mapping)}
        return {**lists, **blocks[0]} if len(blocks) == 1 else dict(self.params)


def read_inputs(stage: str, scale: str, *names: object) -> Inputs:
    """Read the inputs of one stage.

    Args:
        stage: its kind in dvc.yaml.
        names: what tells its instances apart, such as a task and a number of function evaluations.

    Raises:
        UserError: there are none; one line with the remedy and the names for which there are some.
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
    """The inputs of a ``program`` that is no stage of a pipeline: ``params``, as its arguments say."""
    return Inputs(program, built(ScaleSettings, {}), params)


def resolved_inputs(settings: Settings) -> dict[Path, str]:
    """The text of every input file that ``settings`` ask for, by its place.

    These are the inputs of the scale and the lists that they name, of the coupling study, which has a scale of its own,
    and of the scripted demonstrations, which have none.
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


def scripted(name: str, block: TaskSettings | None = None) -> dict[str, Any]:
    """What a scripted expert's demonstrations depend on, beside the arguments of the program that makes them.

    Args:
        name: of a task, or of the ``block`` of params.yaml that describes one.
    """
    if block is None:
        return {name: {"task": name, "expert": load_task(name).expert}}
    custom = {key: value for key, value in (block.custom or {}).items() if key != "datasets"}
    return {name: {"task": block.task, "expert": block.load_task().expert, "custom": custom}}


def _scales(settings: Settings) -> list[str]:
    return [name for name, field in type(settings).model_fields.items() if field.annotation is ScaleSettings]


def resolved(settings: Settings, scale: str) -> dict[str, Any]:
    """All settings of a scale as plain values; of the current one the lists are those at the top of params.yaml.

    Beside them stand ``studies``, the tasks with a coupling study, ``study_nfe``, the numbers that it has recipes for,
    and of the one-step study ``one_step_tasks``, ``one_step_scales``, this one where there are any, ``one_step_nfe``,
    those that ft_fm is tuned for, and ``one_step_baselines``.
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
    """Place, kind and keys of every input file of ``kinds``."""
    for stage, kind in kinds.items():
        for values in product(*(tree[name] for name in kind.over)):
            named = dict(zip(kind.over, values, strict=True))
            path = FOLDER / scale / f"{'-'.join([stage, *map(str, values)])}.json"
            yield path, kind, [key for template in kind.keys for key in _filled(template, named, tree)]


def _filled(template: str, named: Mapping[str, object], tree: Mapping[str, Any]) -> list[str]:
    """``template`` with the ``named`` values, and once for each value of a list that is not named."""
    names = list(dict.fromkeys(re.findall(r"{(\w+)}", template)))
    choices = [[named[name]] if name in named else tree[name] for name in names]
    return [template.format(**dict(zip(names, values, strict=True))) for values in product(*choices)]


def chosen(tree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The part of ``tree`` that ``keys`` name."""
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
    """Digests of what runs from ``roots`` on, the code of the tasks and experts that ``settings`` name among it."""
    blocks = [settings, *(value for value in settings.values() if isinstance(value, Mapping))]
    named = [block[key] for block in blocks for key in ("task", "expert") if isinstance(block.get(key), str)]
    return digests_of(*roots, *map(file_of, named))


def outdated_outside(settings: Settings, root: Path) -> list[str]:
    """Files of tasks outside the library that say something else than the inputs in the project ``root`` were made of.

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
    """``one`` with what ``other`` says, block by block."""
    both = dict(one)
    for name, value in other.items():
        both[name] = _merged(one[name], value) if isinstance(one.get(name), dict) else value
    return both


def built(annotation: Any, value: Any) -> Any:
    """``value``, of plain values that were valid as a whole, as settings of the type ``annotation``; keys that are not
    there stay unset, and raise an ``AttributeError`` where they are read."""
    if isinstance(annotation, type) and issubclass(annotation, Block) and isinstance(value, dict):
        fields = annotation.model_fields
        known = {name: fields[name].annotation if name in fields else TaskSettings for name in value}
        return annotation.model_construct(**{name: built(known[name], inner) for name, inner in value.items()})
    if get_origin(annotation) is dict and isinstance(value, dict):
        return {name: built(get_args(annotation)[1], inner) for name, inner in value.items()}
    if get_origin(annotation) in (Union, UnionType) and isinstance(value, dict):
        kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Block)]
        if not kinds:  # keys of a task's own
            return value
        (fitting,) = [kind for kind in kinds if len(kinds) == 1 or value["kind"] in _literal(kind)]
        return built(fitting, value)
    if hasattr(annotation, "__metadata__"):
        return built(get_args(annotation)[0], value)
    return value


def _literal(kind: type[Block]) -> tuple[Any, ...]:
    return get_args(kind.model_fields["kind"].annotation)
