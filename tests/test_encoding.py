"""Code that reads or writes text names the encoding, since Python's default depends on the locale."""

import ast

from pipeline.utils.code_deps import ROOT

FILES = sorted(path for folder in ("pipeline", "stages", "tests") for path in (ROOT / folder).rglob("*.py"))
STARTERS = ("run", "Popen", "check_output", "check_call", "call")


def without_encoding(tree: ast.AST) -> list[ast.Call]:
    """Return calls that read or write text without naming the encoding."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if is_text(call) and not any(word.arg == "encoding" for word in call.keywords)]


def is_text(call: ast.Call) -> bool:
    """Return whether ``call`` opens, reads or writes text, or reads a process's output as text."""
    function, words = call.func, {word.arg: word.value for word in call.keywords}
    if isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text"):
        return True
    if isinstance(function, ast.Attribute) and function.attr in STARTERS:
        return any(key in words for key in ("text", "universal_newlines"))
    if isinstance(function, ast.Name) and function.id in ("open", "fdopen"):
        mode = call.args[1] if len(call.args) > 1 else words.get("mode")
    elif isinstance(function, ast.Attribute) and function.attr == "open":
        mode = call.args[0] if call.args else words.get("mode", ast.Constant("r"))
    else:
        return False
    return mode is None or (isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rwax+t"))


def test_text_is_read_and_written_with_an_explicit_encoding() -> None:
    found = [(path, call) for path in FILES for call in without_encoding(ast.parse(path.read_text(encoding="utf-8")))]
    assert [f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}" for path, call in found] == []
