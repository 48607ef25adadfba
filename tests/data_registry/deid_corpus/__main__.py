"""Score `core-mri data deidentify`, or the output of any other tool, on a planted corpus.

python -m tests.data_registry.deid_corpus --seed 1 --patients 48
python -m tests.data_registry.deid_corpus --seed 1 --patients 48 --write DIR   # only the files
python -m tests.data_registry.deid_corpus --seed 1 --patients 48 --score DIR   # another tool's
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.data_registry.deid_corpus.generate import corpus, write
from tests.data_registry.deid_corpus.score import score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patients", type=int, default=48)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--score", type=Path)
    flags = parser.parse_args()
    files = list(corpus(flags.seed, flags.patients))
    if flags.write:
        write(files, flags.write)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = flags.score or Path(folder) / "out"
        if not flags.score:
            write(files, Path(folder) / "in")
            key = Path(folder) / "project.key"
            key.touch(mode=0o600)
            key.write_text("5a" * 32)
            command = [sys.executable, "-m", "core_mri", "data", "deidentify"]
            subprocess.run(
                [
                    *command,
                    str(Path(folder) / "in"),
                    str(out),
                    "--key-file",
                    str(key),
                    "--extras",
                    "reports",
                ],
                check=True,
            )
        outputs = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        result = score(files, outputs)
    checks = result.passed.total() + result.failed.total()
    print(f"{len(files)} files, {result.tokens} tokens, {result.leaks.total()} leaks")
    print(f"{checks} checks, {100 * result.rate:.4f} % passed; failed {dict(result.failed)}")
    for place in result.missed[:20]:
        print(f"  {place}")
    return 1 if result.leaks.total() else 0


if __name__ == "__main__":
    sys.exit(main())
