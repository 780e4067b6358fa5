"""Copies the library's own source files into an export, so that the exported code is the code that was trained.

transformers loads custom code from files of one folder that import each other by `from .name import ...`. The files of
the library become such files: only their imports of liteframe are rewritten, and the lines that register classes with
transformers' Auto classes are left out (an export's `auto_map` does that; two exports never share code by mistake).
The Triton kernels travel too: an export runs them where Triton and a GPU are, elsewhere their references. Their custom
operations are registered under the name of the export's package, so that exports and the library do not meet.
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from transformers.dynamic_module_utils import get_relative_import_files

OWN_PACKAGES = ("liteframe", "liteframe_kernels", "liteframe_export")
KERNELS = "liteframe_kernels"
# Left out of the names of the copied files; what follows must stay unique.
ROOMS = ("liteframe.models.vlm.", "liteframe.models.", "liteframe.", "liteframe_kernels.", "liteframe_export.")


@dataclass(frozen=True)
class Edit:
    """Lines first..last (from 1, inclusive) of a source file become `text`."""

    first: int
    last: int
    text: str


def bundle(entries: Sequence[str], folder: Path) -> list[str]:
    """Copy the modules `entries` and everything of liteframe they import into `folder`, as flat files.

    Args:
        entries: dotted names, such as "liteframe.models.vlm.internvl".
        folder: where the files go; it exists.

    Returns:
        Names of the files written.

    Raises:
        ValueError: a module imports liteframe in a way that cannot be made relative, or two files share a name.
    """
    waiting, done = list(entries), dict[str, str]()
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        name = file_name(module)
        if name in done.values():
            raise ValueError(f"two modules of the export would be called {name}; rename {module}")
        source, imported = flatten(module)
        (folder / name).write_text(source, encoding="utf-8")
        done[module] = name
        waiting += imported
    _check_found(entries, done, folder)
    return sorted(done.values())


def file_name(module: str) -> str:
    """File of a module in an export: liteframe.models.student.encoder -> student_encoder.py."""
    room = next((room for room in ROOMS if module.startswith(room)), "")
    return module.removeprefix(room).replace(".", "_") + ".py"


def flatten(module: str) -> tuple[str, list[str]]:
    """Source of a module with its liteframe imports made relative, and the modules they name.

    Raises:
        ValueError: an import that has no relative form.
    """
    path = _source_file(module)
    source = path.read_text(encoding="utf-8")
    edits: list[Edit] = []
    imported: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(_is_own(alias.name) for alias in node.names):
            raise ValueError(f"{path}:{node.lineno}: write `from ... import ...`; exports cannot rewrite `import x.y`")
        if isinstance(node, ast.ImportFrom):
            target = _absolute(module, node)
            if not _is_own(target):
                continue
            lines, modules = _relative_import(path, node, target)
            edits.append(Edit(node.lineno, node.end_lineno or node.lineno, lines))
            imported += modules
        if isinstance(node, ast.Import) and node.col_offset == 0 and node.names[0].name.split(".")[0] == "triton":
            # transformers wants everything installed that a file imports outside of "try", loaded or not.
            line = f"    {ast.unparse(node)}\n"
            edits.append(Edit(node.lineno, node.lineno, f"try:\n{line}except ImportError:\n    raise\n"))
        if isinstance(node, ast.Constant) and str(node.value).startswith(f"{KERNELS}::"):
            line = source.splitlines(keepends=True)[node.lineno - 1]
            here = '__package__.replace(".", "_") + "::'
            edits.append(Edit(node.lineno, node.lineno, line.replace(f'"{KERNELS}::', here)))
        if isinstance(node, ast.Expr) and _registers(node.value):
            edits.append(Edit(node.lineno, node.end_lineno or node.lineno, ""))
    text = _apply(source, edits)
    _check_closed(path, text)
    header = f"# Source: {'/'.join(module.split('.'))}.py of LiteFrame (Apache-2.0), with relative imports.\n"
    return header + text, imported


def _source_file(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}, so its source cannot be exported")
    return Path(spec.origin)


def _is_own(module: str) -> bool:
    return module.split(".")[0] in OWN_PACKAGES


def _absolute(module: str, node: ast.ImportFrom) -> str:
    package = module.split(".")[: -node.level] if node.level else []
    return ".".join([*package, *([node.module] if node.module else [])])


def _relative_import(path: Path, node: ast.ImportFrom, target: str) -> tuple[str, list[str]]:
    indent = " " * node.col_offset
    lines, modules = [], []
    if target == KERNELS:
        places = _kernel_functions()
        for alias in node.names:
            if alias.name not in places:
                raise ValueError(f"{path}:{node.lineno}: {KERNELS} has no function {alias.name}")
            lines.append(
                f"{indent}from .{_stem(places[alias.name])} import {alias.name} as {alias.asname or alias.name}\n"
            )
            modules.append(places[alias.name])
    elif _source_file(target).name == "__init__.py":
        if not _is_kernel(target):
            raise ValueError(
                f"{path}:{node.lineno}: `from {target} import ...` names a package; exports need the file itself"
            )
        for alias in node.names:
            # A file as a whole: its functions in a namespace of that name.
            module = f"{target}.{alias.name}"
            lines.append(f"{indent}class {alias.asname or alias.name}:\n")
            lines.append(f"{indent}    from .{_stem(module)} import {', '.join(_functions(module))}\n")
            modules.append(module)
    else:
        names = ", ".join(a.name if a.asname is None else f"{a.name} as {a.asname}" for a in node.names)
        lines.append(f"{indent}from .{_stem(target)} import {names}\n")
        modules.append(target)
    return "".join(lines), modules


def _stem(module: str) -> str:
    return Path(file_name(module)).stem


def _is_kernel(module: str) -> bool:
    return module.startswith(f"{KERNELS}.")


def _kernel_functions() -> dict[str, str]:
    """Each public function of the kernels -> the module that has it."""
    tree = ast.parse(_source_file(KERNELS).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in found for alias in node.names}


def _functions(module: str) -> list[str]:
    """Names of the functions that a module offers to others."""
    tree = ast.parse(_source_file(module).read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not node.decorator_list
    ]


def _registers(call: ast.expr) -> bool:
    """Whether this is `AutoSomething.register(...)`."""
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "register"
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id.startswith("Auto")
    )


def _apply(source: str, edits: list[Edit]) -> str:
    lines = source.splitlines(keepends=True)
    for edit in sorted(edits, key=lambda edit: edit.first, reverse=True):
        lines[edit.first - 1 : edit.last] = [edit.text]
    return "".join(lines).rstrip("\n") + "\n"


def _check_closed(path: Path, text: str) -> None:
    """Raise unless the rewritten source names no package of ours, neither in an import nor to importlib."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            names = [name for name in names if name.replace(".", "").isidentifier() and "." in name]
        if own := [name for name in names if _is_own(name)]:
            raise ValueError(f"{path}: the exported copy would still need {', '.join(own)}")


def _check_found(entries: Sequence[str], done: dict[str, str], folder: Path) -> None:
    """Raise unless transformers, which looks for imports by regular expression, finds every file."""
    found = {done[entry] for entry in entries}
    for entry in entries:
        found |= {Path(file).name for file in get_relative_import_files(folder / done[entry])}
    if found != set(done.values()):
        odd = sorted(found ^ set(done.values()))
        raise ValueError(f"transformers would load other files than the export holds: {', '.join(odd)}")


def load_bundle(folder: Path, module: str) -> ModuleType:
    """A bundled module as Python runs it in this process, in a package of the folder's own name.

    Args:
        folder: where `bundle` has put the module; not needed afterwards.
        module: its dotted name in the library.
    """
    package = ModuleType(f"exported_{folder.name}")
    package.__path__ = [str(folder)]
    package.__spec__ = ModuleSpec(package.__name__, None, is_package=True)
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.{Path(file_name(module)).stem}")
