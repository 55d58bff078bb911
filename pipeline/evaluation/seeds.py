"""Seeds of episodes: to report, to choose by, and to demonstrate. Imports no library, to start at once."""

import re

from pipeline.utils.errors import UserError

FIRST_TEST_SEED = 100_000
FIRST_VALIDATION_SEED = 200_000
FIRST_DEMONSTRATION_SEED = 300_000
_END_OF_SEEDS = 2**32


def test_seeds(count: int) -> range:
    """Return the seeds of reported results; nothing is chosen by them."""
    return range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)


def validation_seeds(count: int) -> range:
    """Return the seeds by which checkpoints and settings are chosen."""
    return range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + count)


def seed_range(text: str, first: int = 0) -> range:
    """Parse FIRST:END, END excluded.

    Args:
        first: the least seed allowed, such as ``FIRST_DEMONSTRATION_SEED``.

    Raises:
        UserError: another form, an empty range, or a seed that is not allowed.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not first <= int(match[1]) < int(match[2]) <= _END_OF_SEEDS:
        reserved = f", from {first} on; below are test and validation seeds" if first else ", below 2**32"
        example = max(first, FIRST_TEST_SEED)
        raise UserError(f"--seeds: given {text!r}, allowed: FIRST:END such as {example}:{example + 500}{reserved}")
    return range(int(match[1]), int(match[2]))
