"""Rules of the house that a test can hold."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT

from usl.stages.table import STAGES

# Floors of usl/: a room imports from its own floor and those below; the last is the ground floor.
FLOORS = [
    {"stages"},
    {"training"},
    {"encoders", "inference", "augment", "lists", "report"},
    {"selectors", "data", "models", "run", "cli"},
    {"geometry", "config", "artifacts", "shards", "checkpoints"},
    {"metrics", "ranking", "distributed", "engines", "errors"},
]
FILES = sorted((ROOT / "usl").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*[-_]*/*.py"))


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Modules that a file imports, in every form there is, also inside functions."""
    names = {module_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module


def edges():
    return {
        module_of(path): {name for name in imports(path) if name.split(".")[0] == "usl"}
        for path in FILES
    }


def test_every_room_has_a_floor():
    rooms = {room_of(module_of(path)) for path in FILES} - {""}
    assert rooms == set().union(*FLOORS)


def test_imports_go_down_only():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for module, imported in edges().items():
        for name in imported:
            if room_of(module) and room_of(name):
                assert floor[room_of(name)] >= floor[room_of(module)], f"{module} imports {name}"
            else:
                # The package itself is the front door: it imports, and nothing imports it.
                assert module == "usl", f"{module} imports {name}"


def test_no_imports_in_circles():
    graph, done = edges(), set()

    def visit(module, path):
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_settings_stop_at_the_stages():
    """Only config knows YACS; only stages name YAML keys, and only these two its trees."""
    trees = [stage.defaults() for stage in STAGES.values()]
    sections = {key for tree in trees for key, value in tree.items() if hasattr(value, "keys")}
    leaves = {key for tree in trees for key in tree} - sections
    # SEED, STEPS and EPOCHS are words that constants have too.
    keys = re.compile(
        rf"\b(?:{'|'.join(sorted(sections))})\.[A-Z_]+\b"
        rf"|\b(?:{'|'.join(sorted(key for key in leaves if '_' in key))})\b"
    )
    for path in FILES:
        room, text = room_of(module_of(path)), path.read_text()
        if room != "stages":
            assert room == "config" or "CfgNode" not in text, path
            # What a folder of a run is called is no setting; config reads what is common to all.
            own = {"RUN_DIR", "RUN_NAME", "SAVE_DIR", "OPTS_IN_RUN_NAME"}
            found = set(keys.findall(text)) - (own if room == "config" else {"RUN_DIR"})
            assert not found, f"{path}: {found}"
        if room != "config":
            assert not any(name.startswith("yacs") for name in imports(path)), path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_say_how_to_run_them(path):
    text = path.read_text()
    assert len(text.splitlines()) < 100
    assert f"python {path.name} --cfg configs/" in ast.get_docstring(ast.parse(text))
    assert f"{path.parent.name}/{path.name}" in STAGES


def test_test_files_are_short():
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_importing_usl_is_light():
    heavy = ("pykeops", "timm", "numba", "sklearn", "matplotlib", "pandas", "torchvision", "yacs")
    code = f"import sys, usl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = (ROOT / "requirements.txt").read_text().split("\n")
    assert [line for line in listed if line and line != "-e ."] == project["dependencies"]
