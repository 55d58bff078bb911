"""What stages that run side by side print: their lines with their names, and on a terminal how far each of them is."""

import codecs
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.live import Live

REFRESH_SECONDS = 0.1
PROGRESS_SECONDS = 30
"""Of a line of progress where lines stay, which a terminal shows and writes over every ``REFRESH_SECONDS``."""

_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")
_CURSOR = re.compile(r"\x1b\[[\d;?]*[A-Zhl]")  # moves it, unlike the colours, which end in m


class Screen(Protocol):
    """Where the output of several stages goes."""

    def line(self, stage: str, text: str, stream: TextIO) -> None:
        """Print a line that ``stage`` wrote to ``stream``."""

    def progress(self, stage: str, text: str, stream: TextIO, *, whole: bool) -> None:
        """Take note of how far ``stage`` is; more of ``text`` may come if it is not ``whole``."""

    def began(self, stage: str) -> None:
        """Take note that ``stage`` is at work."""

    def ended(self, stage: str) -> None:
        """Take note that ``stage`` is no more at work."""

    def refresh(self) -> None:
        """Show what was noted; called at least every second."""


def on_terminal() -> bool:
    """Whether somebody watches, and nothing is redirected."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextmanager
def screen() -> Iterator[Screen]:
    """The screen for the stdout and stderr that this process has."""
    if not on_terminal():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    # It refreshes when told to: by itself it would do so in a thread, beside which no process can be forked safely. And
    # sys.stdout stays what it is, for processes that are forked meanwhile.
    console = Console(highlight=False)
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        yield _Terminal(live)


class _Lines:
    """Lines only: how far a stage is, is one every ``PROGRESS_SECONDS``."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def line(self, stage: str, text: str, stream: TextIO) -> None:
        print(f"{stage} | {text}", file=stream, flush=True)

    def progress(self, stage: str, text: str, stream: TextIO, *, whole: bool) -> None:
        if whole and time.monotonic() >= self._due.get(stage, 0):
            self.line(stage, text, stream)
            self._due[stage] = time.monotonic() + PROGRESS_SECONDS

    def began(self, stage: str) -> None:
        pass

    def ended(self, stage: str) -> None:
        pass

    def refresh(self) -> None:
        pass


class _Terminal:
    """Lines, and below them one for each stage at work, which shows its progress and is written over."""

    def __init__(self, live: "Live") -> None:
        self._live = live
        self._at: dict[str, str] = {}
        self._shown: list[str] = []
        self._refreshed = 0.0

    def line(self, stage: str, text: str, stream: TextIO) -> None:  # noqa: ARG002
        from rich.text import Text

        self._live.console.print(Text.from_ansi(f"{stage} | {text}"), soft_wrap=True)

    def progress(self, stage: str, text: str, stream: TextIO, *, whole: bool) -> None:  # noqa: ARG002
        self._at[stage] = text

    def began(self, stage: str) -> None:
        self._at[stage] = ""

    def ended(self, stage: str) -> None:
        del self._at[stage]

    def refresh(self) -> None:
        from rich.text import Text

        lines = [f"{stage} | {text}" for stage, text in self._at.items()]
        if lines != self._shown and time.monotonic() - self._refreshed >= REFRESH_SECONDS:
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
