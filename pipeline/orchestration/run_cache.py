"""Run DVC with a run cache that transfers only the runs that the other side lacks.

``python -m pipeline.orchestration.run_cache ARGUMENTS…`` is ``dvc ARGUMENTS…``. DVC's own run cache copies all runs one
by one on each pull and push, and skips those that it could not copy. With ``--only-take`` before the arguments, a stage
without a cached run fails instead of running.
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
"""Two hashes of a run: of its command and inputs, and of its whole entry with the outputs."""

_FILE = re.compile(r"[/\\]([0-9a-f]{2})[/\\](\1[0-9a-f]{62})[/\\]([0-9a-f]{64})$")
"""Path of a run's entry; half-written files have other names."""


class RunCache(dvc.stage.cache.StageCache):
    """Run cache of a repository that copies only missing runs."""

    def missing(self, from_odb: "ObjectDB", to_odb: "ObjectDB") -> list[Run]:
        """Return the runs in ``from_odb`` that ``to_odb`` lacks."""
        return sorted(runs_in(from_odb) - runs_in(to_odb))

    def transfer(self, from_odb: "ObjectDB", to_odb: "ObjectDB", force: bool = True) -> list[Run]:  # noqa: ARG002
        """Copy the ``missing`` runs, several at a time, and return them.

        Args:
            force: part of DVC's signature; without effect, since a run's name is the hash of its contents.

        Raises:
            OSError: a run could not be copied; no half is left behind. Remotes other than folders raise other errors.
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
    """Run cache of a machine that takes the results of others and runs nothing."""

    def restore(self, stage: "Stage", *arguments: Any, **options: Any) -> None:
        """Restore the outputs of ``stage`` from a cached run; raise a ``DvcException`` if there is none."""
        try:
            super().restore(stage, *arguments, **options)
        except RunCacheNotFoundError:
            raise DvcException(
                f"{stage.addressing}: a worker has run it, but DVC's remote has no run with the inputs here; "
                "check that both machines have the same remote and the same files that no stage makes"
            ) from None


def runs_in(odb: "ObjectDB") -> set[Run]:
    """Return the completely written runs in ``odb``, a local cache or a remote."""
    found = map(_FILE.search, odb.fs.find(odb.fs.join(odb.path, "runs")))
    return {(match[2], match[3]) for match in found if match}


def _paths(odb: "ObjectDB", runs: Iterable[Run]) -> list[str]:
    return [odb.fs.join(odb.path, "runs", key[:2], key, value) for key, value in runs]


def _remove_halves(odb: "ObjectDB", runs: Iterable[Run]) -> None:
    """Remove half-written files in the folders of ``runs``: DVC's own pull takes all files there."""
    for path in _paths(odb, runs):
        with suppress(Exception):  # the remote may be unreachable
            for found in odb.fs.find(odb.fs.parent(path)):
                if not _FILE.search(found):
                    odb.fs.remove(found)


def main() -> int:
    """Run DVC with this program's arguments; return its exit code."""
    from dvc.cli import main as dvc_main

    arguments = sys.argv[1:]
    only_take = arguments[:1] == ["--only-take"]
    dvc.stage.cache.StageCache = OnlyTaken if only_take else RunCache
    return int(dvc_main(arguments[only_take:]))


if __name__ == "__main__":
    sys.exit(main())
