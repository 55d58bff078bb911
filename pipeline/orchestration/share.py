"""Push results to DVC's remote, so that a clone with the same inputs takes them instead of running stages.

``python -m pipeline.orchestration.share``, in the root, is ``dvc push --run-cache`` plus the outputs that stages keep
out of DVC's cache, such as reports. DVC saves those with the run that made them but does not push them. ``--new`` skips
runs that the remote has, whose outputs should be there.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.orchestration.plan import repository
from pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.hash_info import HashInfo


def push(root: Path, *, new: bool = False) -> int:
    """Push the runs of the project in ``root`` (the current folder) and their outputs; return the number of new files.

    Runs are pushed after their outputs, so that no clone finds a run without outputs.

    Args:
        new: push only runs that the remote lacks, with their outputs, which saves a request per file.

    Raises:
        UserError: there is no remote, or some files could not be pushed.
    """
    from pipeline.orchestration.run_cache import RunCache, runs_in

    try:
        with repository(root) as repo:
            cache, runs = repo.cache.legacy, RunCache(repo)
            remote = repo.cloud.get_remote_odb(command="push", hash_name=cache.hash_name)
            wanted = runs.missing(cache, remote) if new else runs_in(cache)
            pushed = failed = 0
            for odb, files in runs.get_used_objs(wanted).items():
                _remove_halves(repo.cache.local, odb or repo.cloud.get_remote_odb(command="push"), files)
                done = repo.cloud.push(files, odb=odb)
                pushed, failed = pushed + len(done.transferred), failed + len(done.failed)
            if failed:
                raise UserError(f"DVC's remote: {failed} files could not be pushed; see the lines above")
            return pushed + len(runs.transfer(cache, remote))
    except UserError:
        raise
    except Exception as error:  # each kind of remote raises its own errors
        raise UserError(f"DVC's remote: {' '.join(str(error).split())}") from error


def _remove_halves(here: "HashFileDB", there: "HashFileDB", files: Iterable["HashInfo"]) -> None:
    """Remove those of ``files`` from ``there`` whose size differs from that ``here``.

    A killed push by SSH leaves a partial file under the final name, and DVC compares only names.
    """
    names = [file.value for file in files if file.value]
    paths = [there.oid_to_path(name) for name in names]
    sizes = [
        [told.get("size") if isinstance(told, dict) else None for told in odb.fs.info(found, return_exceptions=True)]
        for odb, found in ((here, [here.oid_to_path(name) for name in names]), (there, paths))
    ]
    for path, own, other in zip(paths, *sizes, strict=True):
        if own is not None and other is not None and own != other:
            there.fs.remove(path)


def main() -> int:
    try:
        pushed = push(Path.cwd(), new="--new" in sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{pushed} files pushed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
