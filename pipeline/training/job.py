"""Describe a stage by its arguments and files. The module imports no library, so that programs start at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Asked:
    """Arguments of a stage: a method of a task at a scale. Of a stage without a task, the task is its block's name.

    Attributes:
        nfe: the number of function evaluations that it is trained for; 0: none.
        replica: a training seed in place of that in params.yaml; None: that in params.yaml.
        models: files that it measures, beside those of the pipeline.
    """

    scale: str
    task: str
    method: str = ""
    nfe: int = 0
    replica: int | None = None
    models: Sequence[Path] = ()

    @property
    def row(self) -> str:
        """Return method and NFE in one word, for ``split_row``."""
        return f"{self.method}-nfe{self.nfe}"


@dataclass(frozen=True)
class Job:
    """Description of a run of a stage.

    Attributes:
        label: the name of its run. deps, outs: files and folders read and written.
        also: values that its result depends on beside its settings.
        shipped: its name among shipped results; empty: none are shipped.
    """

    label: str
    deps: Sequence[Path]
    outs: Sequence[Path]
    also: Mapping[str, object] = field(default_factory=dict)
    shipped: str = ""
