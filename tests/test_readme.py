"""What the README shows is what happens."""

import contextlib
import io
import re

import pytest

from pipeline.utils.code_deps import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_of_a_policy_of_your_own_prints_what_stands_below_it() -> None:
    section = README.split("## A policy of your own\n")[1].split("\n## ")[0]
    program, shown = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})

    number = re.compile(r"\d+\.\d+")
    assert number.sub("·", printed.getvalue()) == number.sub("·", shown)
    # rounding differs from machine to machine, and 300 steps carry it along
    figures = [[float(figure) for figure in number.findall(text)] for text in (printed.getvalue(), shown)]
    assert figures[0] == pytest.approx(figures[1], abs=0.1)
    *_, spread, best = figures[0]
    assert spread > 0.75 and best < 0.15


def test_the_loop_of_your_own_runs_an_episode_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    section = README.split("In a loop of your own")[1]
    (program, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)
    assert names["terminated"] or names["truncated"]
