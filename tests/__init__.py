"""A package, since torch-fidelity installs one of this name that would otherwise be found in its place."""
