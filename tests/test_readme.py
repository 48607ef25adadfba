"""Every code block of every README runs, in order, in a copy of the checkout.

A block that cannot run carries a line ``<!-- not run: reason -->`` above it; no block of the quick
start does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    *(f"{p}/README.md" for p in ("core_mri", "data_registry", "pretrain", "downstream")),
]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL
)
QUICK_START = "## 60-second start"


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    reason: str | None
    line: int


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(m["language"], m["code"], m["reason"], text[: m.start("code")].count("\n") + 1)
        for m in BLOCK.finditer(text)
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files git tracks, with this checkout's environment beside them.

    Times are copied too, else make would set the environment up again for newer files.
    """
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    (copy / ".venv").symlink_to(ROOT / ".venv", target_is_directory=True)
    return copy


def run(block: Block, folder: Path) -> None:
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    scripts = Path(sys.executable).parent
    variables = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*command[block.language], block.code],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"line {block.line}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_quick_start_runs_whole() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split(QUICK_START, 1)[1].split("\n## ", 1)[0]
    assert "```bash" in section
    assert "not run" not in section


def test_only_languages_we_run() -> None:
    assert {b.language for page in PAGES for b in blocks(page)} <= {"bash", "python"}


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, checkout: Path) -> None:
    """The root page comes first: its demo leaves the folder that later pages look at."""
    for block in blocks(page):
        if block.reason is None:
            run(block, checkout)
