"""The programs that DVC runs, one per kind of stage."""

import os
import signal

from pipeline.processes import die_with_parent

# Under DVC a stage dies with the process that started it, so that a killed `dvc repro` leaves no orphan that goes on
# writing. Here, and not in the program, since that begins only after seconds of imports.
if "DVC_STAGE" in os.environ:
    die_with_parent(os.getppid(), signal.SIGKILL)
