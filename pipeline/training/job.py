"""The arguments of a stage, and the files that it reads and writes. Imports nothing: programs start at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Asked:
    """The arguments of a stage: a method of a task at a scale.

    Attributes:
        nfe: that it is trained for; 0: none.
        replica: a training seed in place of that in params.yaml; None: that one.
    """

    scale: str
    task: str
    method: str = ""
    nfe: int = 0
    replica: int | None = None

    @property
    def row(self) -> str:
        """As ``split_row`` reads it."""
        return f"{self.method}-nfe{self.nfe}"


@dataclass(frozen=True)
class Job:
    """A stage before it begins.

    Attributes:
        label: the name of its run. deps, outs: files and folders read and written.
        also: what its result depends on beside its settings.
        shipped: its name among shipped results; empty: it has none.
    """

    label: str
    deps: Sequence[Path]
    outs: Sequence[Path]
    also: Mapping[str, object] = field(default_factory=dict)
    shipped: str = ""
