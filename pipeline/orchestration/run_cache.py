"""DVC's command line, with a run cache that moves only what the other side lacks.

``python -m pipeline.orchestration.run_cache ARGUMENTS…`` is ``dvc ARGUMENTS…``. DVC's own copies every run that there
is, one after another, each time that it pulls or pushes, and passes over those that could not be copied.
``--only-take`` before the arguments: a stage that no run is found for fails in place of running.
"""

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dvc.stage.cache
from dvc.exceptions import DvcException
from dvc.stage.cache import RunCacheNotFoundError
from dvc_objects.fs.generic import copy

if TYPE_CHECKING:
    from dvc.stage import Stage
    from dvc_objects.db import ObjectDB

Run = tuple[str, str]
"""A run's two hashes: of what it read and how, and of what it made."""

_FILE = re.compile(r"[/\\]([0-9a-f]{2})[/\\](\1[0-9a-f]{62})[/\\]([0-9a-f]{64})$")
"""Of a run; half-written files have other names."""


class RunCache(dvc.stage.cache.StageCache):
    """The run cache of a repository."""

    def missing(self, from_odb: "ObjectDB", to_odb: "ObjectDB") -> list[Run]:
        """The runs in ``from_odb`` that ``to_odb`` lacks."""
        return sorted(runs_in(from_odb) - runs_in(to_odb))

    def transfer(self, from_odb: "ObjectDB", to_odb: "ObjectDB", force: bool = True) -> list[Run]:  # noqa: ARG002
        """Copy the ``missing`` runs, several at a time, and return them.

        Args:
            force: DVC's own; it changes nothing, since a run's name is the hash of its contents.

        Raises:
            OSError: one could not be copied; no half of it is left behind. Remotes other than folders have errors of
                their own.
        """
        missing = self.missing(from_odb, to_odb)
        if missing:
            try:
                copy(from_odb.fs, _paths(from_odb, missing), to_odb.fs, _paths(to_odb, missing))
            except Exception:
                _remove_halves(to_odb, missing)
                raise
        return missing


class OnlyTaken(RunCache):
    """The run cache of a machine that takes what others made, and runs nothing."""

    def restore(self, stage: "Stage", *arguments: Any, **options: Any) -> None:
        """Bring back what a run of ``stage`` made; raises a ``DvcException`` where it is not found."""
        try:
            super().restore(stage, *arguments, **options)
        except RunCacheNotFoundError:
            raise DvcException(
                f"{stage.addressing}: a worker brought it up to date, but DVC's remote has no run that read what is "
                "here; is the remote the same place there, and are the files that no stage makes the same?"
            ) from None


def runs_in(odb: "ObjectDB") -> set[Run]:
    """The runs that are whole in ``odb``, a local cache or a remote."""
    found = map(_FILE.search, odb.fs.find(odb.fs.join(odb.path, "runs")))
    return {(match[2], match[3]) for match in found if match}


def _paths(odb: "ObjectDB", runs: Iterable[Run]) -> list[str]:
    return [odb.fs.join(odb.path, "runs", key[:2], key, value) for key, value in runs]


def _remove_halves(odb: "ObjectDB", runs: Iterable[Run]) -> None:
    """Remove what a full disk left of files in the folders of ``runs``: DVC's own pull takes all files there."""
    for path in _paths(odb, runs):
        with suppress(Exception):  # the remote may be what is gone
            for found in odb.fs.find(odb.fs.parent(path)):
                if not _FILE.search(found):
                    odb.fs.remove(found)


def main() -> int:
    """The program: DVC's exit code."""
    from dvc.cli import main as dvc_main

    arguments = sys.argv[1:]
    only_take = arguments[:1] == ["--only-take"]
    dvc.stage.cache.StageCache = OnlyTaken if only_take else RunCache
    return int(dvc_main(arguments[only_take:]))


if __name__ == "__main__":
    sys.exit(main())
