"""The tests are a package because torch-fidelity installs another package named ``tests``."""
