"""Properties of the code itself: size, words, imports, tests that say what they test."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("edge_client", "broker_bridge", "aggregator", "firmware_tools")
FILE_LINES_MAX = 420
FUNCTION_LINES_MAX = 65  # about 60, and a docstring that grew
LINE_LENGTH_MAX = 120
BANNED_WORDS = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")
BANNED_NAMES = ("Manager", "Helper", "Util")

SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def name(path):
    return str(path.relative_to(ROOT))


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_file_is_tidy(path):
    """Files and functions stay short, say what they are for, and promise nothing they do not do."""
    text = path.read_text()
    lines = text.splitlines()
    tree = ast.parse(text)

    assert len(lines) <= FILE_LINES_MAX
    assert [i for i, line in enumerate(lines, 1) if len(line) > LINE_LENGTH_MAX] == []
    assert ast.get_docstring(tree), "a module says what it is responsible for"
    assert [w for w in BANNED_WORDS if w in text] == []
    long = [f.name for f in functions(tree) if f.end_lineno - f.lineno + 1 > FUNCTION_LINES_MAX]
    assert long == []
    classes = [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    assert [c for c in classes if any(word in c for word in BANNED_NAMES)] == []
    assert [h.lineno for h in ast.walk(tree) if isinstance(h, ast.ExceptHandler) and h.type is None] == []
    prints = [
        n.lineno
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"
    ]
    assert prints == []


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_every_test_says_a_behaviour(path):
    """A test's docstring is a sentence."""
    tests = [f for f in functions(ast.parse(path.read_text())) if f.name.startswith("test_")]

    assert [f.name for f in tests if not (ast.get_docstring(f) or "").rstrip().endswith(".")] == []


@pytest.mark.parametrize("invariant", [f"I{n}" for n in range(1, 14) if n != 7])
def test_every_invariant_is_named_by_a_test(invariant):
    """Each invariant of ARCHITECTURE.md has tests that name it; I7 binds once there is a custodian's policy."""
    marks = (f"{invariant}:", f"{invariant},", f"{invariant} ", f"{invariant})")
    named = [path for path in TESTS if any(mark in path.read_text() for mark in marks)]

    assert named


def test_importing_the_daemon_loads_neither_numpy_nor_onnxruntime():
    """The daemon stays small: only its trainer child pays for numbers."""
    code = (
        "import edge_client.daemon, sys; print(sorted({'numpy', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_one_module_loads_onnx_runtime():
    """I8: ONNX Runtime is loaded only where its reports to its maker are switched off first."""
    loading = [
        name(p) for p in SOURCES if re.search(r"^\s*(import|from) onnxruntime", p.read_text(), re.MULTILINE)
    ]

    assert loading == ["edge_client/runtime.py"]
