"""Programs that DVC runs, one per kind of stage."""

import os
import signal
import sys
from pathlib import Path

from pipeline.orchestration import lockguard, restore
from pipeline.utils.handover import run_by_server
from pipeline.utils.platform import die_with_parent, die_with_starter

# Under DVC a stage dies with the process that started it, so that a killed `dvc repro` leaves no orphan that writes.
# This is here because the program itself begins only after seconds of imports.
die_with_starter()
if "DVC_STAGE" in os.environ:
    die_with_parent(os.getppid(), signal.SIGKILL)
    if os.getpgid(os.getppid()) != os.getpgrp():  # a living DVC is in the same process group
        sys.exit("error: the DVC that started this stage is gone")
    if sys.argv[:1] == ["-m"]:  # the stage's program, not a process that it starts
        root = Path(__file__).resolve().parents[1]
        restore.note_stage(root, os.environ["DVC_STAGE"])
        lockguard.guard(root, os.getppid())
# `make repro` and Prefect flows run it in a process that has imported everything.
run_by_server()
