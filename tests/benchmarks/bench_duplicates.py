"""Near-duplicate search among ten million hashes: time, memory, recall and precision.

    python tests/benchmarks/bench_duplicates.py [--millions 10] [--seed 0]

Random hashes with planted pairs at 0 to 8 bits, mirrored at random. Sought are those at 4 bits or
fewer; "false" counts pairs that were returned and not planted (chance neighbors, which are as close
as a planted pair: their number is compared with the expected one). Reference: comparing all pairs
with the same popcount, timed on a part and scaled.
"""

from __future__ import annotations

import argparse
import math
import resource
import time

import numpy as np

from data_registry.near_search import near_pairs
from data_registry.perceptual_hash import FLIPS, distance


def planted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct hashes, the planted pairs ``[P, 2]`` and their bits."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    number = count // 1000
    bits = np.arange(number) % 9
    for pair in range(number):
        changed = random.choice(64, bits[pair], replace=False).astype(np.uint64)
        noise = (np.uint64(1) << changed).sum(dtype=np.uint64)
        hashes[count - 1 - pair] = hashes[pair] ^ noise ^ FLIPS[random.integers(4)]
    return hashes, np.stack([np.arange(number), count - 1 - np.arange(number)], axis=1), bits


def all_pairs_seconds(hashes: np.ndarray) -> float:
    """CPU-seconds of comparing every hash with every other, from 20 of them."""
    started = time.process_time()
    for number in range(20):
        (distance(hashes, hashes[number]) <= 4).sum()
    return (time.process_time() - started) / 20 * len(hashes) / 2


def main() -> None:
    """Print time, memory, recall and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = int(options.millions * 1e6)
    hashes, pairs, bits = planted(count, options.seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = near_pairs(hashes)
    seconds = time.process_time() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    code = found.pairs[:, 0] * count + found.pairs[:, 1]
    sought = np.isin(pairs[:, 0] * count + pairs[:, 1], code)
    near = bits <= 4
    true = np.isin(code, (pairs[:, 0] * count + pairs[:, 1])[near])
    volume = 4 * sum(math.comb(64, k) for k in range(5))
    expected = count * (count - 1) / 2 * volume / 2**64
    print(f"{count} hashes, seed {options.seed}: {seconds:.1f} CPU-seconds, +{memory:.2f} GiB")
    print(f"planted at <= 4 bits: {near.sum()}, found {sought[near].sum()}")
    print(f"planted at 5 to 8 bits: {(~near).sum()}, returned {sought[~near].sum()}")
    print(f"other pairs returned: {(~true).sum()}, by chance expected {expected:.1f}")
    print(
        f"all of them within 4 bits: {bool((found.bits <= 4).all())}; skipped {len(found.skipped)}"
    )
    brute = all_pairs_seconds(hashes)
    print(f"comparing all pairs: {brute:.0f} CPU-seconds, {brute / seconds:.0f} times as long")


if __name__ == "__main__":
    main()
