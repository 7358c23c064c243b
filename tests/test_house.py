"""Rules of the house that a test can hold."""

import ast
import subprocess
import sys

from conftest import ROOT

# Floors of usl/: a module imports from its own floor and those below.
FLOORS = {
    "errors": 0,
    "selection": 1, "metrics": 1, "distributed": 1,
    "data": 2, "models": 2, "checkpoints": 2, "artifacts": 2,
    "features": 3, "training": 3,
    "config": 4, "run": 4, "report": 4, "steps": 4,
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_down_only():
    seen = set()
    for path in (ROOT / "usl").rglob("*.py"):
        room = path.relative_to(ROOT / "usl").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for name in imports(path):
            if name.startswith("usl."):
                assert FLOORS[name.split(".")[1]] <= FLOORS[room], f"{path} imports {name}"
    assert seen == set(FLOORS)


def test_only_config_knows_yacs():
    for path in (ROOT / "usl").rglob("*.py"):
        if path.name != "config.py":
            assert not any(name.startswith("yacs") for name in imports(path)), path


def test_scripts_are_short_and_say_how_to_run_them():
    for path in ROOT.glob("*[-_]*/*.py"):
        text = path.read_text()
        assert len(text.splitlines()) < 100, path
        assert f"python {path.name} --cfg configs/" in ast.get_docstring(ast.parse(text))


def test_importing_usl_is_light():
    heavy = ("pykeops", "timm", "sklearn", "matplotlib", "pandas", "torchvision")
    code = f"import sys, usl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
