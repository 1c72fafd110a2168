"""Lower floors never import higher ones, read from the imports in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The first entry that a module's name starts with decides; what is not named is floor 0.
FLOORS = {
    "vlchat.cli": 4,
    "train": 3,
    "serve": 3,
    "vlchat.commands": 3,
    "vlchat.scoring": 3,
    "vlchat.chat": 2,
    "vlchat.conversation": 2,
    "vlchat.terminal": 2,
    "vlchat.evaluate": 2,
    "vlchat.evidence": 2,
    "vlchat.export": 2,
    "vlchat.adapters": 2,
    "vlchat.compare": 2,
    "vlchat.lmms": 2,
    "vlchat.interop": 1,
    "vlchat.model": 1,
    "vlchat.backbones": 1,
    "vlchat.prompt": 1,
    "vlchat.chat_templates": 1,
    "vlchat.processor": 1,
    "vlchat.foreign": 1,
    "vlchat.quantize": 1,
    "vlchat.attention": 1,
    "vlchat.hub": 1,
    "vlchat.places": 1,
    "vlchat.resolution": 1,
    "vlchat.lora": 1,
    "vlchat.checkpoint": 1,
    "vlchat.saving": 1,
    "vlchat.whole": 1,
    "vlchat.folders": 1,
    "vlchat.runs": 1,
    "vlchat.run_info": 1,
    "vlchat.data": 1,
    "vlchat.heads": 1,
}
HEAVY = {"bitsandbytes", "gradio", "peft", "datasets", "matplotlib", "playwright"}
FILES = sorted(path for room in ("vlchat", "train", "serve") for path in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    return next((level for name, level in FLOORS.items() if module == name or module.startswith(name + ".")), 0)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module a file imports, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_once: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.name}: imports are absolute here"
                # `from vlchat import images` names a module, `from vlchat.images import decode` a thing in one
                found.extend(
                    (f"{child.module}.{alias.name}" if is_module(f"{child.module}.{alias.name}") else str(child.module),
                     at_once)
                    for alias in child.names
                )  # fmt: skip
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                visit(child, at_once and not inside)

    visit(tree, True)
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_file_imports_from_a_higher_floor(path: Path) -> None:
    mine = module_name(path)
    if mine == "vlchat":  # gives its names on demand
        return
    for name, _ in imports(path):
        room = name.split(".")[0]
        if room in ("vlchat", "train", "serve"):
            # The command line may reach train and serve; `model` composes through `backbones` on its own floor.
            assert floor(name) <= floor(mine), f"{mine} (floor {floor(mine)}) imports {name} (floor {floor(name)})"
            assert room == "vlchat" or mine == "vlchat.cli" or not mine.startswith("vlchat."), f"{mine} imports {name}"
            if {mine.split(".")[0], room} == {"train", "serve"}:
                raise AssertionError(f"{mine} imports {name}: train and serve know nothing of each other")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    allowed = {"gradio"} if module_name(path).startswith("serve") else set()
    at_once = {name.split(".")[0] for name, at_once in imports(path) if at_once}
    assert not at_once & (HEAVY - allowed)


def test_the_command_line_reaches_train_and_serve_inside_functions() -> None:
    for path in FILES:
        if module_name(path) == "vlchat.cli":
            assert not {name.split(".")[0] for name, at_once in imports(path) if at_once} & {"train", "serve"}


def test_importing_vlchat_is_quick_and_light() -> None:
    code = "import sys, vlchat; print(sorted({'torch', 'transformers', 'gradio', 'bitsandbytes'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_loading_the_model_classes_needs_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "import vlchat.checkpoint\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
