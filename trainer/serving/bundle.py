"""The sources that a registered model needs, as one file that stands on its own."""

from __future__ import annotations

import ast
import importlib.util
import symtable
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline import Fault

_ROOMS = ("data_pipeline", "trainer", "tuning", "launch")


_OUTLINING = ("components", "segmenter", "weights", "opening", "pyfunc")


def bundle_source(*network_modules: str) -> str:
    """Python text with all of a registered model: reading pixels, its networks, outlining, and MLflow's entry.

    network_modules are the dotted names of the networks' files; what they import of this project comes with them.
    The text needs nothing of this project to run. Raises Fault when these files cannot stand in one.
    """
    outlining = (f"trainer.serving.{name}" for name in _OUTLINING)
    return join_modules("data_pipeline.pixels", *_behind_their_imports(network_modules), *outlining)


def join_modules(*names: str) -> str:
    """The sources of modules, by their dotted names, one after the other; comments and layout stay.

    Imports that the joined modules make from each other go, and so do `from __future__` lines. Raises Fault for
    a module that is not there, for any other import from this project, and for a name at the top of two modules
    that does not mean the same in both.
    """
    parts = ['"""One file made of several, so that it needs nothing of the project that they come from."""\n']
    meanings: dict[str, str] = {}
    for position, name in enumerate(names):
        source = _source(name)
        tree = ast.parse(source)
        for bound, meaning in _bindings(source, tree, name):
            if meanings.setdefault(bound, meaning) != meaning:
                raise Fault(f"{name} cannot be bundled: {bound} is {meanings[bound]} and {meaning}; rename one")
        dropped = {line for node in _inner_imports(tree, name, names[:position]) for line in _lines(node)}
        kept = [text for line, text in enumerate(source.splitlines(), start=1) if line not in dropped]
        parts.append("\n".join([f"\n# From {name}\n", *kept, ""]))
    return "".join(parts)


def _behind_their_imports(names: Iterable[str]) -> list[str]:
    """Modules and those of this project that they import from, each once and behind what it imports from."""
    ordered: dict[str, None] = {}
    for name in names:
        for node in ast.parse(_source(name)).body:
            if isinstance(node, ast.ImportFrom) and node.module and _is_own(node):
                ordered |= dict.fromkeys(_behind_their_imports([node.module]))
        ordered[name] = None
    return list(ordered)


def _source(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise Fault(f"{name} cannot be bundled: there is no such module")
    return Path(spec.origin).read_text(encoding="utf-8")


def _inner_imports(tree: ast.Module, name: str, before: tuple[str, ...]) -> Iterator[ast.stmt]:
    """The import statements that one file has no need of. Raises Fault for one that it would miss."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            yield node
        elif isinstance(node, ast.Import | ast.ImportFrom) and _is_own(node):
            taken_from = node.module if isinstance(node, ast.ImportFrom) else None
            renamed = any(alias.asname for alias in node.names)
            if node not in tree.body or taken_from not in before or renamed:
                raise Fault(
                    f"{name}, line {node.lineno}, cannot be bundled: {ast.unparse(node)}; "
                    "import names as they are, at the top, from a module bundled before"
                )
            yield node


def _is_own(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] in _ROOMS
    return any(alias.name.split(".")[0] in _ROOMS for alias in node.names)


def _bindings(source: str, tree: ast.Module, name: str) -> Iterator[tuple[str, str]]:
    """Each name that a module binds at its top, with what it means: another module's, or this one's own."""
    imported: dict[str, str] = {}
    # Breadth first, so that an import at the top comes before one of the same name inside a function.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                # `import a.b` binds a; `import a.b as c` binds c to a.b.
                plain = alias.name if origin else alias.name.split(".")[0]
                imported.setdefault(alias.asname or plain, origin + (alias.name if alias.asname else plain))
    for symbol in symtable.symtable(source, name, "exec").get_symbols():
        bound = symbol.get_name()
        if symbol.is_imported():
            yield bound, imported[bound]
        elif symbol.is_assigned():
            yield bound, f"{name}.{bound}"


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)
