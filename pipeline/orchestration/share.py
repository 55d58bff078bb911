"""Give DVC's remote what was made here, so that any clone with the same inputs is given it in place of a run.

``python -m pipeline.orchestration.share``, in the root, is ``dvc push --run-cache`` and the outputs that stages keep
out of DVC's cache, such as reports: DVC saves those beside the run that made them, but leaves them out when it pushes.
"""

import sys
from pathlib import Path

from pipeline.orchestration.plan import repository
from pipeline.utils.errors import UserError


def push(root: Path) -> int:
    """Push every run that the run cache of the project in ``root`` (the current folder) has; how many files were new.

    Raises:
        UserError: there is no remote, or some files did not arrive.
    """
    from dvc.exceptions import DvcException

    try:
        with repository(root) as repo:
            runs = repo.stage_cache.push(None)
            pushed = failed = 0
            for odb, files in repo.stage_cache.get_used_objs(runs).items():
                done = repo.cloud.push(files, odb=odb)
                pushed, failed = pushed + len(done.transferred), failed + len(done.failed)
    except (DvcException, OSError) as error:
        raise UserError(f"DVC's remote: {' '.join(str(error).split())}") from error
    if failed:
        raise UserError(f"DVC's remote: {failed} files did not arrive; the lines above say why")
    return pushed


def main() -> int:
    try:
        pushed = push(Path.cwd())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{pushed} files pushed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
