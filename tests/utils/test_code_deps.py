"""Digests of code: the files that a program runs, and what counts as a change of one."""

from pathlib import Path

import pytest

from pipeline.utils import code_deps
from pipeline.utils.code_deps import code_of, digest, digests_of

CODE = '''"""Add numbers."""

from pipeline.b import one


class Adder:
    """Adds."""

    def add(self, x: int) -> int:
        """Add one, f"{x}" as text."""
        return x + one  # never two
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(code_deps, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def forget() -> None:
    for cached in (code_deps.digest, code_deps.imports_of, code_deps._tree):
        cached.cache_clear()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def test_nested_imports_are_followed_and_plumbing_is_excluded(root: Path) -> None:
    files = {
        "stages/train.py": "import torch\nfrom pipeline import a\nfrom pipeline.settings import schema\n",
        "pipeline/a.py": "def f():\n    import pipeline.nets.b\n",
        "pipeline/nets/b.py": "if True:\n    from pipeline.c import thing\n",
        "pipeline/c.py": "from pipeline import a\nfrom pipeline.utils import atomic, seeding\n",
        "pipeline/settings/schema.py": "import pipeline.unused\n",
        "pipeline/utils/atomic.py": "",
        "pipeline/utils/seeding.py": "seed = 0\n",
        "pipeline/unused.py": "",
    }
    write(root, files)
    code = ["pipeline/a.py", "pipeline/c.py", "pipeline/nets/b.py", "pipeline/utils/seeding.py", "stages/train.py"]
    assert code_of("stages/train.py") == code
    assert list(digests_of("stages/train.py")) == code


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("# never two", "# never 2", False),
        ('"""Add one, f"{x}" as text."""', '"""Add 1."""', False),
        ('"""Add numbers."""\n\n', "", False),
        ("return x + one", "return (x\n            + one)", False),
        ("x + one", "one + x", True),
        ("x + one", "x - one", True),
        ("-> int:", "-> float:", True),
        ("import one", "import two as one", True),
    ],
)
def test_digest_changes_only_with_the_code(root: Path, before: str, after: str, changes: bool) -> None:
    assert before in CODE
    write(root, {"pipeline/one.py": CODE, "pipeline/two.py": CODE.replace(before, after)})
    assert (digest("pipeline/one.py") != digest("pipeline/two.py")) == changes


def test_a_digest_is_the_same_in_every_supported_python(root: Path) -> None:
    # 3.12 parses f-strings otherwise than 3.11 does, and its functions have a field more
    write(root, {"pipeline/one.py": 'def f(x: int) -> str:\n    return "a" f"{x:.2f}" "b" f"{x!r}"\n'})
    assert digest("pipeline/one.py") == "62bd72c0eef3f7f4"
