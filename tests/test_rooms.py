"""The house has one direction: launch -> tuning -> trainer -> data_pipeline."""

import ast
from pathlib import Path

import pytest

ROOMS = ("data_pipeline", "trainer", "tuning", "launch")
HOUSE = Path(__file__).parent.parent


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    files = sorted((HOUSE / room).rglob("*.py"))
    assert files
    assert {str(file): imported_rooms(file) - allowed for file in files if imported_rooms(file) - allowed} == {}
