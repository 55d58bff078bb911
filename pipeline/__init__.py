"""FlowTune's library and orchestration."""

import sys

# Its programs, and those of stages/, run in this project's environment, set before anything else is imported. Here, and
# not in each of them; but whoever imports the library into a program of their own keeps theirs.
if sys.argv[:1] == ["-m"]:  # as it is while `python -m` imports the package of the program
    from pipeline.utils.environment import set_environment

    set_environment()
