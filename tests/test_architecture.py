"""The rules of the code base that a machine can check: who imports whom, budgets, what may not be written."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from segshift import recipes
from segshift.config import RunSettings, validated
from segshift.data.classes import BUILT_IN
from segshift.methods import METHODS
from segshift.setup import stage_settings

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "segshift"

# Part → the parts that it may import. A part is a folder or a file of the package.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "losses": {"types"},
    "ops": {"types"},
    "artefacts": {"errors", "types"},
    "nets": {"errors", "types", "ops"},
    "weak": {"errors", "types", "artefacts"},
    "data": {"errors", "types", "artefacts", "weak"},
    "methods": {"errors", "types", "losses", "ops", "artefacts", "nets"},
    "engine": {"errors", "types", "losses", "ops", "artefacts", "nets", "data", "methods", "weak"},
    "recipes": {"errors"},
    "demo_data": set(),
    "report": {"errors", "types", "artefacts"},
    "config": {"errors", "types", "artefacts", "data", "engine", "nets"},
    "setup": {"errors", "types", "artefacts", "config", "data", "engine", "methods", "nets"},
    "stage_checks": {"errors", "config", "engine", "methods", "setup"},
    "supervision": {"errors", "types", "config", "data", "methods", "setup", "weak"},
    "networks": {"errors", "artefacts", "config", "engine", "nets"},
    "production": {"errors", "types", "artefacts", "config", "data", "engine", "setup"},
    "room": {"errors", "artefacts", "config", "data", "engine", "methods", "nets", "setup"},
    "run": {"errors", "types", "artefacts", "config", "data", "engine", "methods", "nets", "production", "setup"}
    | {"networks", "room", "stage_checks", "supervision"},
    "rounds": {"errors", "types", "artefacts", "data", "engine", "methods", "run", "setup"},
    "tagging": {"errors", "artefacts", "config", "data", "engine", "methods", "run", "setup", "supervision", "weak"},
    "feature_pictures": {"errors", "types", "artefacts", "config", "data", "engine", "setup"},
    "outcome": {"errors", "types", "artefacts", "engine", "feature_pictures", "report", "rounds", "run", "setup"}
    | {"tagging"},
    "checking": {"errors", "types", "artefacts", "config", "data", "engine", "setup"},
    "api": {"errors", "types", "artefacts", "config", "data", "engine", "methods", "recipes", "report", "run", "setup"}
    | {"outcome", "checking", "demo_data", "feature_pictures", "supervision", "weak"},
    "miniatures": {"types", "artefacts", "data", "weak"},
    "dry_run": {"errors", "api", "artefacts", "config", "data", "engine", "methods", "miniatures", "networks", "setup"}
    | {"supervision"},
    "annotate": {"errors", "types", "artefacts", "weak", "data", "engine", "setup"},
    "published": {"errors", "types", "config", "data", "engine", "nets", "setup"},
    "evaluate_cli": {"errors", "api", "artefacts", "config", "engine", "published"},
    "cli": {
        "annotate",
        "dry_run",
        "evaluate_cli",
        "errors",
        "labels_cli",
        "api",
        "artefacts",
        "config",
        "data",
        "engine",
        "recipes_cli",
        "report",
        "select_cli",
        "demo_data",
    },
    "recipes_cli": {"errors", "recipes"},
    "candidates": {"errors", "artefacts", "config", "engine", "setup"},
    "selecting": {"errors", "types", "artefacts", "candidates", "config", "data", "engine", "report", "setup"},
    "select_cli": {"config", "selecting"},
    "labels_cli": {"errors", "data", "weak"},
    "__main__": {"cli"},
    "__init__": {"api"},
}

FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
RECIPES = sorted((PACKAGE / "recipes").glob("*/*.yaml"))

FILE_LINES, FUNCTION_LINES, METHOD_LINES, RECIPE_LINES = 400, 60, 200, 60


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


every_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """Modules of the package that a file imports, inside functions too unless `at_top`."""
    for node in ast.iter_child_nodes(parsed(path)) if at_top else ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "segshift" or name.startswith("segshift."):
                yield name if name in MODULES else name.rpartition(".")[0]


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


# ---- imports


@every_file
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(module_of(path))
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what {part} may import"
    for module in imports(path):
        other = part_of(module)
        # `import segshift` for its version is no import of the api: that one is made when first asked for.
        if other not in (part, "__init__"):
            assert other in MAY_IMPORT[part], f"{name_of(path)} imports {module}"


def test_the_parts_have_an_order() -> None:
    """No two of them may import each other, by whatever way round."""
    left = {part: set(others) for part, others in MAY_IMPORT.items() if part != "__init__"}
    while left:
        free = {part for part, others in left.items() if not others & left.keys()}
        assert free, f"these import each other: {sorted(left)}"
        left = {part: others for part, others in left.items() if part not in free}


def test_no_two_modules_import_each_other() -> None:
    graph = {module_of(path): set(imports(path)) - {"segshift"} for path in FILES}
    pairs = [(a, b) for a in graph for b in graph[a] if a < b and a in graph[b]]
    assert not pairs


def test_no_ring_of_modules() -> None:
    graph = {module_of(path): set(imports(path)) - {"segshift", module_of(path)} for path in FILES}
    graph = {module: others for module, others in graph.items() if module != "segshift"}
    while graph:
        free = {module for module, others in graph.items() if not others & graph.keys()}
        assert free, f"these import each other: {sorted(graph)}"
        graph = {module: others for module, others in graph.items() if module not in free}


def test_engine_imports_no_method() -> None:
    for path in (PACKAGE / "engine").rglob("*.py"):
        found = {module for module in imports(path) if part_of(module) == "methods"}
        assert found <= {"segshift.methods.base"}, name_of(path)


def test_no_method_inherits_from_a_method() -> None:
    from segshift.methods.base import Method

    for entry in METHODS.values():
        assert isinstance(entry.build, type)
        assert entry.build.__bases__ == (Method,)


def test_import_of_the_package_brings_no_torch() -> None:
    program = "import sys, segshift, segshift.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "PIL", "pydantic", "kornia", "matplotlib", "safetensors", "jinja2", "yaml"}
    assert not heavy & set(done.stdout.split())


# ---- what may not be written


@every_file
def test_first_lines(path: Path) -> None:
    tree = parsed(path)
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert first.endswith((".", ":", "…")), "a module starts with a sentence"
    if len(tree.body) > 1 and path.name not in ("errors.py", "__main__.py"):
        second = tree.body[1]
        assert isinstance(second, ast.ImportFrom)
        assert second.module == "__future__"


@every_file
def test_no_silent_fall_back(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("globals", "eval", "exec", "print"), f"{where}: {called}()"
            for keyword in node.keywords:
                # zip's strict is about lengths, not about weights that are left out.
                loose = keyword.arg == "strict" and isinstance(keyword.value, ast.Constant) and not keyword.value.value
                assert not loose or called == "zip", f"{where}: strict=False"
                unsafe = keyword.arg == "weights_only" and not getattr(keyword.value, "value", True)
                assert not unsafe, f"{where}: weights_only=False"
        assert not isinstance(node, ast.Global), f"{where}: global"


DECORATORS = {
    "abstractmethod", "asynccontextmanager", "cache", "classmethod", "cached_property", "command", "contextmanager",
    "dataclass", "field_serializer", "field_validator", "lru_cache", "model_validator", "no_grad",
    "once_differentiable", "overload", "property", "runtime_checkable", "staticmethod", "inference_mode",
    "setter", "wraps", "callback",
}  # fmt: skip
"""Known ones that register nothing outside their own class (`command`: of the command line itself)."""


@every_file
def test_no_registry_decorators(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                called: Any = decorator.func if isinstance(decorator, ast.Call) else decorator
                name = called.attr if isinstance(called, ast.Attribute) else called.id
                assert name in DECORATORS, f"{name_of(path)}:{node.lineno}: @{name}"


# ---- budgets


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_budgets(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{name_of(path)} has {lines} lines"
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{name_of(path)}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=name_of)
def test_method_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= METHOD_LINES


def test_a_median_file_is_short() -> None:
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 150


# ---- recipes and pages


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_are_whole_and_short(path: Path) -> None:
    name = str(path.relative_to(PACKAGE / "recipes").with_suffix(""))
    assert name in recipes.names()
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    more = 4 * max(0, len(content["stages"]) - 10)  # only an ablation of ProDA's stages has so many of several lines
    assert len(path.read_text(encoding="utf-8").splitlines()) <= RECIPE_LINES + more
    settings = validated(RunSettings, content, name)
    assert settings.about.endswith((".", ")")), "`segshift recipes` shows it"
    assert settings.stages
    for stage in settings.stages:
        stage_settings(stage)
    for part in ("source", "target", "val"):
        assert getattr(settings, part) is None, "where the data lies is the user's part"
    # What a benchmark's classes are is a matter of its recipes.
    assert settings.classes is None or str(settings.classes) in BUILT_IN


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_and_a_page(name: str) -> None:
    recipe = validated(RunSettings, recipes.read(f"cpu/{name}"), name)
    assert name in [stage.method for stage in recipe.stages]
    page = REPOSITORY / "docs" / "methods" / f"{name}.md"
    assert page.is_file(), f"write {name_of(page)}"
    assert f"cpu/{name}" in page.read_text(encoding="utf-8") or f"--method {name}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_test_of_its_own(name: str) -> None:
    assert (REPOSITORY / "tests" / "methods" / f"test_{name}.py").is_file()
