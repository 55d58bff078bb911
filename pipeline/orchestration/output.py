"""Show what stages that run side by side print: lines with their names, and on a terminal how far each of them is."""

import codecs
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live

REFRESH_SECONDS = 0.1
PROGRESS_SECONDS = 30
"""Of a line of progress where lines stay, which a terminal shows and writes over every ``REFRESH_SECONDS``."""

_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")
_CURSOR = re.compile(r"\x1b\[[\d;?]*[A-Zhl]")  # moves it, unlike the colours, which end in m


def on_terminal() -> bool:
    """Whether somebody watches, and nothing is redirected."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextmanager
def screen() -> Iterator["Screen"]:
    """The screen for the stdout and stderr that this process has."""
    if not on_terminal():
        yield Screen()
        return
    from rich.console import Console
    from rich.live import Live

    # It refreshes when told to: by itself it would do so in a thread, beside which no process can be forked safely. And
    # sys.stdout stays what it is, for processes that are forked meanwhile.
    console = Console(highlight=False)
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        yield Screen(live)


class Screen:
    """Lines, and on a terminal below them one for each stage at work, which shows its progress and is written over.

    Elsewhere its progress is a line every ``PROGRESS_SECONDS``.
    """

    def __init__(self, live: "Live | None" = None) -> None:
        """A screen with a live part, if it is a terminal."""
        self._live = live
        self._at: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._shown, self._refreshed = list[str](), 0.0

    def line(self, stage: str, text: str, stream: TextIO) -> None:
        """Print a line that ``stage`` wrote to ``stream``."""
        if self._live:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(f"{stage} | {text}"), soft_wrap=True)
        else:
            print(f"{stage} | {text}", file=stream, flush=True)

    def progress(self, stage: str, text: str, stream: TextIO, *, whole: bool) -> None:
        """Take note of how far ``stage`` is; more of ``text`` may come if it is not ``whole``."""
        self._at[stage] = text
        if not self._live and whole and time.monotonic() >= self._due.get(stage, 0):
            self.line(stage, text, stream)
            self._due[stage] = time.monotonic() + PROGRESS_SECONDS

    def began(self, stage: str) -> None:
        """Take note that ``stage`` is at work."""
        self._at[stage] = ""

    def ended(self, stage: str) -> None:
        """Take note that ``stage`` is no more at work."""
        del self._at[stage]

    def refresh(self) -> None:
        """Show what was noted; called at least every second."""
        lines = [f"{stage} | {text}" for stage, text in self._at.items()]
        if self._live and lines != self._shown and time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            from rich.text import Text

            text = Text("\n", no_wrap=True, overflow="ellipsis").join(map(Text.from_ansi, lines))
            self._live.update(text, refresh=True)
            self._shown, self._refreshed = lines, time.monotonic()


class Pipe:
    """What one stage writes to its stdout or stderr.

    Attributes:
        source, sink: file descriptors, to read from (without waiting) and for the stage to write to.
    """

    def __init__(self, stage: str, stream: TextIO, to: Screen) -> None:
        self._stage, self._stream, self._screen = stage, stream, to
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self.source, self.sink = os.pipe()
        os.set_blocking(self.source, False)

    def pump(self) -> bool:
        """Pass on what has come; False once it is at its end."""
        try:
            while data := os.read(self.source, 1 << 16):
                self._show(self._decoder.decode(data))
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Pass on the last line, which may have no end."""
        self._show(self._decoder.decode(b"", final=True) + "\n")
        os.close(self.source)

    def _show(self, text: str) -> None:
        *pieces, self._rest = _ENDS.split(self._rest + text)
        for piece in pieces:
            if shown := _CURSOR.sub("", piece).rstrip():
                if piece.endswith("\n"):
                    self._screen.line(self._stage, shown, self._stream)
                else:
                    self._screen.progress(self._stage, shown, self._stream, whole=True)
        if shown := _CURSOR.sub("", self._rest).strip():
            self._screen.progress(self._stage, shown, self._stream, whole=False)
