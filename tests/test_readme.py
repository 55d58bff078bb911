"""Examples and links in README.md and docs/ work."""

import contextlib
import io
import re

import pytest

from pipeline.utils.code_deps import ROOT

README, POLICIES = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/policies.md"))


def test_custom_policy_example_prints_the_documented_output() -> None:
    section = POLICIES.split("## A policy of your own\n")[1].split("\n## ")[0]
    program, shown = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, "policies.md", "exec"), {"__name__": "__main__"})

    number = re.compile(r"\d+\.\d+")
    assert number.sub("·", printed.getvalue()) == number.sub("·", shown)
    # rounding differs from machine to machine, and 300 steps carry it along
    figures = [[float(figure) for figure in number.findall(text)] for text in (printed.getvalue(), shown)]
    assert figures[0] == pytest.approx(figures[1], abs=0.1)
    *_, spread, best = figures[0]
    assert spread > 0.75 and best < 0.15


def test_readme_control_loop_runs_an_episode_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    section = README.split("In a loop of your own")[1]
    (program, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)
    assert names["terminated"] or names["truncated"]


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_point_to_existing_files_and_headings(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings], target
