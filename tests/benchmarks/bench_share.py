"""A gigabyte through `core-mri data share serve`, killed half way and gone on with.

    python -m tests.benchmarks.bench_share --gb 1

The server runs in a process of its own; curl is killed at half of the file, then goes on with
``-C -``. Printed: whether the hashes are equal, seconds of both parts, the largest resident memory
of the server before and after, and, as reference of the same run, seconds of the whole file from
Python's own ``http.server``, which checks nothing. Both have read the file once before. The
content is random numbers, the registry holds phantoms.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data_registry import IngestConfig, Registry, Source, ingest
from data_registry.cohorts import freeze
from data_registry.export import ExportConfig, export
from data_registry.governance import sharing as sharing_module
from data_registry.governance.agreements import accept
from data_registry.governance.downloads import fetched
from data_registry.governance.share_ledger import register
from data_registry.governance.sharing import Shared, Sharing
from tests.data_registry.conftest import save_phantom


def peak_mb(pid: int) -> float:
    """The largest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def share(folder: Path, size: int) -> tuple[Path, Path, Shared]:
    """A registry, its export with a large file in it, and a link; nobody reviews phantoms."""
    save_phantom(folder / "scans" / "patient00" / "knee_T1.nii.gz", "knee", 0)
    key = folder / "project.key"
    key.write_text("c0" * 32)
    key.chmod(0o600)
    source = Source(name="phantoms", licence="CC0-1.0", root=str(folder / "scans"))
    ingest(IngestConfig(registry=folder / "reg", sources=(source,), key_file=key, jobs=1))
    registry = Registry.open(folder / "reg")
    freeze(registry, "knees", "region = 'knee'")
    out = folder / "out"
    export(ExportConfig(registry=registry.path, out=out, format="nifti", cohort="knees"))
    rng = np.random.default_rng(0)
    with (out / "big.bin").open("wb") as file:
        while file.tell() < size:
            file.write(rng.bytes(min(1 << 24, size - file.tell())))
    sharing_module.check_release = lambda *_: None
    user = register(registry.path, "Ada Example", "ada@example.org")
    accept(registry, user, "phantoms", "CC0-1.0")
    shared = Sharing.open(registry).issue(
        "knees", user, out, now=time.time(), seconds=3600, reviewed=(), project_key=b""
    )
    return registry.path, out, shared


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=1.0)
    size = int(parser.parse_args().gb * 1e9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry, out, shared = share(folder, size)
        server = subprocess.Popen(
            [sys.executable, "-m", "core_mri", "data", "share", "serve", "--registry",
             str(registry), "--port", "0"],
            stdout=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        plain = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory",
             str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            assert plain.stdout is not None
            base = server.stdout.readline().strip()
            other = plain.stdout.readline().split()[5]
            url = f"{base}/files/big.bin?{shared.link.partition('?')[2]}"
            start = time.perf_counter()
            subprocess.run(["curl", "-sfI", "-o", os.devnull, url], check=True)
            print(f"first request, which hashes the file: {time.perf_counter() - start:.2f} s")
            before = peak_mb(server.pid)
            got = folder / "got.bin"
            start = time.perf_counter()
            first = subprocess.Popen(["curl", "-sfo", str(got), url])
            while not got.exists() or got.stat().st_size < size // 2:
                time.sleep(0.005)
            first.kill()
            first.wait()
            middle, cut = time.perf_counter(), got.stat().st_size
            subprocess.run(["curl", "-sfo", str(got), "-C", "-", url], check=True)
            end = time.perf_counter()
            hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (got, out / "big.bin")]
            same = hashes[0] == hashes[1]
            print(f"{size / 1e9:g} GB, cut at {cut / size:.0%}: hashes equal: {same}")
            print(f"seconds before and after the cut: {middle - start:.2f}, {end - middle:.2f}")
            after = peak_mb(server.pid)
            print(f"largest memory of the server: {before:.0f} MB before, {after:.0f} MB after")
            counts = fetched(registry)[shared.nonce]
            print(f"counted: {counts.requests} requests, {counts.completed} completed, "
                  f"{counts.bytes:,} bytes")  # fmt: skip
            for what, address in (
                ("core-mri data share serve", url),
                ("http.server, the reference", f"http://127.0.0.1:{other}/big.bin"),
            ):
                start = time.perf_counter()
                subprocess.run(["curl", "-sfo", str(got), address], check=True)
                print(f"whole file from {what}: {time.perf_counter() - start:.2f} s")
            assert same
        finally:
            for process in (server, plain):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
