"""What taking one patient out of a large catalogue costs, without shards.

    python -m tests.benchmarks.bench_withdraw --volumes 200000

All rows are synthetic. To this comes the copying of the shards that hold the patient: each is read
and written once, chunk by chunk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from data_registry.governance.withdrawal import WithdrawConfig, withdraw
from tests.benchmarks.bench_catalogue import SLICES, make, peak_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volumes", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        registry = make(Path(name) / "reg", options.volumes, 10)
        subject = registry.volumes(limit=1)[0].subject_id
        wall, cpu = time.perf_counter(), time.process_time()
        report = withdraw(registry, WithdrawConfig(subject=subject))
        print(
            f"{options.volumes * SLICES} slices: {report.volumes} volumes withdrawn in "
            f"{time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} CPU-s, "
            f"peak {peak_mb():.0f} MB"
        )


if __name__ == "__main__":
    main()
