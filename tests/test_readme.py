"""Every code block of every README runs, in order, in a copy of the checkout.

A block that cannot run carries a line ``<!-- not run: reason -->`` above it; no block of the quick
start does. The root page runs everything as a newcomer has it; on the other pages `core-mri` and
Python come from a process that has imported PyTorch and the like once (`preloaded.py`).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
SCRIPTS = Path(sys.executable).parent
PRELOADED = [
    "duckdb",
    "h5py",
    "hdf5plugin",
    "highdicom",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "monai.inferers",
    "monai.losses",
    "nibabel",
    "numpy",
    "pyarrow.parquet",
    "pydantic",
    "pydicom",
    "safetensors.torch",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.stats",
    "skimage.metrics",
    "timm",
    "torch",
    "torchvision.transforms.v2",
    "tyro",
    "yaml",
]
"""What the commands import that takes long; nothing that starts threads or looks for a device."""
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


@pytest.fixture(scope="module")
def preloaded(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with commands that start at once: `core-mri`, and `python-code` for `python -c`."""
    folder = tmp_path_factory.mktemp("preloaded")
    address = str(folder / "socket")
    scripts = {"core-mri": SCRIPTS / "core-mri", "python-code": ROOT / "tests/preloaded_code.py"}
    # Libraries that start threads when imported, which a fork would lose; they need none here.
    no_threads = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests/preloaded.py"), address, *PRELOADED],
        cwd=checkout,
        env=os.environ | no_threads,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the calls through their clients
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        client = [sys.executable, "-IS", str(ROOT / "tests/preloaded_client.py"), address]
        for name, script in scripts.items():
            (folder / name).write_text(
                f'#!/bin/sh\nexec {shlex.join([*client, str(script)])} "$@"\n'
            )
            (folder / name).chmod(0o755)
        yield folder
        server.stdin.close()


def run(block: Block, folder: Path, *commands: Path) -> None:
    """Run a block in `folder`, with what is in `commands` before the installed commands."""
    python = ["python-code"] if commands else [sys.executable, "-c"]
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": python}
    path = os.pathsep.join([*map(str, commands), str(SCRIPTS), os.environ["PATH"]])
    variables = os.environ | {"PATH": path}
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
def test_blocks_run(page: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    """The root page comes first: its demo leaves the folder that later pages look at."""
    commands = [] if page == "README.md" else [request.getfixturevalue("preloaded")]
    for block in blocks(page):
        if block.reason is None:
            run(block, checkout, *commands)
