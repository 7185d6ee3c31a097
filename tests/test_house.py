"""The house keeps its shape: arrows go one way, heavy libraries stay out of the command line, files stay readable.

pytest tests/test_house.py
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith

ROOMS = ("errors", "store", "recipe", "models", "template", "data", "engine", "objectives", "methods", "track", "training",
         "serving", "exports", "evals", "releases", "verbs", "jobs", "api", "cli")
"""Each room imports only from those before it. `tunesmith/__init__` is the door to verbs, `__main__` to cli."""
HEAVY = {"torch", "transformers", "peft", "mlflow", "fastapi", "uvicorn", "pydantic", "numpy", "yaml",
         "scipy", "pyarrow", "ray", "zstandard", "huggingface_hub", "sklearn"}
LONGEST_FILE = 450

PACKAGE = Path(tunesmith.__file__).parent
FILES = {".".join(("tunesmith", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p
         for p in sorted(PACKAGE.rglob("*.py"))}


def imported(statement: ast.stmt) -> list[str]:
    """Modules that an import statement names; `from tunesmith.cli import data` names `tunesmith.cli.data`."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        assert statement.level == 0, "relative imports hide where an arrow goes"
        inside = [f"{statement.module}.{alias.name}" for alias in statement.names]
        return [name if name in FILES else statement.module for name in inside]
    return []


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and ast.unparse(statement.test) != "TYPE_CHECKING":
            yield from at_import(statement.body + statement.orelse)
        elif isinstance(statement, ast.If):
            yield from at_import(statement.orelse)
        elif isinstance(statement, ast.Try | ast.With | ast.ClassDef):
            yield from at_import(statement.body)


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", [m for m in FILES if m not in ("tunesmith", "tunesmith.__main__")])
def test_arrows_go_one_way(module):
    """Wherever the import stands: in a function it is the same arrow."""
    here = ROOMS.index(room_of(module))
    for statement in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        for name in imported(statement):
            assert name != "tunesmith", f"line {statement.lineno}: import the room, not the door"
            if name.startswith("tunesmith."):
                assert ROOMS.index(room_of(name)) <= here, f"line {statement.lineno}: {room_of(module)} imports {name}"


def test_every_room_is_in_the_order_and_every_name_in_it_is_a_room():
    assert {room_of(m) for m in FILES if m not in ("tunesmith", "tunesmith.__main__")} == set(ROOMS)


def test_nothing_heavy_is_imported_by_the_command_line():
    """Every module that importing `tunesmith.cli.app` imports in turn, as the source says it."""
    reached, queue = set(), ["tunesmith", "tunesmith.cli.app"]
    while queue:
        module = queue.pop()
        if module in reached:
            continue
        reached.add(module)
        queue += [".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)]
        for statement in at_import(ast.parse(FILES[module].read_text(encoding="utf-8")).body):
            for name in imported(statement):
                assert name.split(".")[0] not in HEAVY, f"{module} imports {name} at line {statement.lineno}"
                queue += [name] if name in FILES else []
    assert {"tunesmith.verbs", "tunesmith.cli.serve", "tunesmith.errors"} <= reached


@pytest.mark.parametrize("module", FILES)
def test_no_file_is_too_long_to_read(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
