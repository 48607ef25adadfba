"""The structure of DESIGN.md, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core_mri", "data_registry", "pretrain", "downstream")
ALLOWED = {
    "core_mri": {"core_mri"},
    "data_registry": {"core_mri", "data_registry"},
    "pretrain": {"core_mri", "data_registry", "pretrain"},
    "downstream": {"core_mri", "data_registry", "downstream"},
}
RAY_FILES = {
    "core_mri/launch.py",
    "data_registry/ray_pool.py",
    "data_registry/ray_source.py",
    "downstream/serving/ray_app.py",
    "pretrain/sweep_trials.py",
}
MAY_PRINT = {"core_mri/__main__.py", "core_mri/demo.py", "core_mri/info.py"}
BANNED_NAMES = ("utils", "helpers", "common", "misc")
CODE_FAMILIES = {"CONFIG", "DATA", "GEOMETRY", "WEIGHTS", "RUN", "SERVE", "SYNTH", "BOARD"}
MAX_LINES = 500
HEAVY = ("torch", "timm", "monai", "ray", "matplotlib", "pydicom", "duckdb")


def sources() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of imported modules, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.fixture(scope="module", params=sources(), ids=relative)
def source(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


class TestEveryFile:
    def test_imports_only_downwards(self, source: Path, tree: ast.Module) -> None:
        package = relative(source).split("/")[0]
        own = {name.split(".")[0] for name in imports(tree)} & set(PACKAGES)
        assert own <= ALLOWED[package]

    def test_ray_stays_in_its_files(self, source: Path, tree: ast.Module) -> None:
        if any(name.split(".")[0] == "ray" for name in imports(tree)):
            assert relative(source) in RAY_FILES

    def test_length(self, source: Path) -> None:
        assert len(source.read_text(encoding="utf-8").splitlines()) <= MAX_LINES

    def test_name_says_something(self, source: Path) -> None:
        assert not any(word in source.stem.split("_") for word in BANNED_NAMES)

    def test_library_code_does_not_print(self, source: Path, tree: ast.Module) -> None:
        if source.stem.endswith("cli") or relative(source) in MAY_PRINT:
            return
        printed = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"print", "exit"}
        ]
        assert not printed

    def test_raised_codes_are_documented(self, tree: ast.Module) -> None:
        from core_mri.errors import CODES

        raised = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.rpartition("-")[0] in CODE_FAMILIES
            and node.value.rpartition("-")[2].isdigit()
        }
        assert raised <= set(CODES)


class TestTopLevel:
    def test_no_other_package(self) -> None:
        found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
        assert found == set(PACKAGES)

    def test_every_package_explains_itself(self) -> None:
        assert all((ROOT / name / "README.md").is_file() for name in PACKAGES)


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    report = f"{code}\nimport sys\nprint('\\n'.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


class TestLightImports:
    @pytest.mark.parametrize(
        "code",
        [
            "import core_mri",
            "import data_registry, pretrain, downstream",
            "import core_mri.config, core_mri.errors, core_mri.models.registry",
            "from core_mri.__main__ import main; main(['--help'])",
            "import core_mri; core_mri.list_models()",
            "import data_registry.cli, pretrain.cli, downstream.cli",
        ],
    )
    def test_loads_no_heavy_library(self, code: str) -> None:
        assert not loaded_after(code) & set(HEAVY)

    def test_ray_is_imported_inside_functions(self) -> None:
        for name in RAY_FILES:
            path = ROOT / name
            if path.exists():
                top = ast.parse(path.read_text(encoding="utf-8")).body
                names = {
                    name
                    for node in top
                    if isinstance(node, ast.Import | ast.ImportFrom)
                    for name in imports(node)
                }
                assert not any(name.split(".")[0] == "ray" for name in names)
