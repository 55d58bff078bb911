"""Show the output of stages that run side by side: lines with stage names, and on a terminal their progress."""

import re
import sys
import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PROGRESS_SECONDS = 30
"""Interval between two progress lines of a stage where lines stay; on a terminal they are overwritten."""

_CURSOR = re.compile(r"\x1b\[[\d;?]*[A-Zhl]")  # cursor movements; colours end in m


def on_terminal() -> bool:
    """Tell whether stdout and stderr are both terminals."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class Screen:
    """Output of all stages: lines that stay, and on a terminal below them one progress line per running stage.

    Elsewhere progress is printed every ``PROGRESS_SECONDS``. The end of the context removes the progress lines.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, transient=True) if on_terminal() else None
        self._at: dict[str, str] = {}
        self._due: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, stage: str, piece: str) -> None:
        """Show a piece of the output of ``stage``: progress if it ends in a carriage return, else a line that stays."""
        text = _CURSOR.sub("", piece).rstrip()
        if not text:
            return
        if not piece.endswith("\r"):
            self._line(f"{stage} | {text}")
        elif self._live:
            self._at[stage] = text
            self._refresh(self._live)
        elif time.monotonic() >= self._due.get(stage, 0):
            self._due[stage] = time.monotonic() + PROGRESS_SECONDS
            self._line(f"{stage} | {text}")

    def ended(self, stage: str) -> None:
        """Remove the progress line of ``stage``."""
        self._at.pop(stage, None)
        if self._live:
            self._refresh(self._live)

    def _line(self, text: str) -> None:
        if self._live:
            self._console.print(Text.from_ansi(text), soft_wrap=True)
        else:
            print(text, flush=True)

    def _refresh(self, live: Live) -> None:
        lines = [Text.from_ansi(f"{stage} | {text}") for stage, text in list(self._at.items())]
        live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines))
