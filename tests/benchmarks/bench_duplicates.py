"""Near-duplicate search among ten million hashes: time, memory, recall and precision.

    python tests/benchmarks/bench_duplicates.py [--millions 10] [--seed 0] [--crowds 20]
    python tests/benchmarks/bench_duplicates.py --registry DIR

Random hashes; 1 % of them in crowds, six random bits around a few centers, as slices that show
little are; and planted pairs at 0 to 8 bits, mirrored at random, of which those at 4 bits or fewer
are sought. Chance neighbors are as close as planted pairs: outside the crowds their number is
compared with the expected one. Reference: comparing all pairs with the same popcount, timed on a
part and scaled.

With a registry: how near slices of different subjects come to each other, and how often a changed
copy of a volume (every third one) still passes the vote of its slices.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_registry import Registry
from data_registry.duplicates import MIN_SHARE
from data_registry.fingerprints import load_fingerprints
from data_registry.near_search import MAX_BITS, near_pairs
from data_registry.perceptual_hash import FLIPS, MIN_DETAIL, distance, slice_hashes
from data_registry.slices import windowed

Change = Callable[[np.ndarray], np.ndarray]


def planted(count: int, seed: int, crowds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Hashes, the planted pairs ``[P, 2]``, their bits, and how many of the hashes are crowds."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    crowded = count // 100 if crowds else 0
    middle = slice(count // 2, count // 2 + crowded)
    if crowds:
        center = random.integers(0, 2**64, crowds, dtype=np.uint64)
        hashes[middle] = center[random.integers(crowds, size=crowded)]
        for _ in range(6):
            hashes[middle] ^= np.uint64(1) << random.integers(0, 64, crowded).astype(np.uint64)
    number = count // 1000
    bits = np.arange(number) % 9
    for pair in range(number):
        changed = random.choice(64, bits[pair], replace=False).astype(np.uint64)
        noise = (np.uint64(1) << changed).sum(dtype=np.uint64)
        hashes[count - 1 - pair] = hashes[pair] ^ noise ^ FLIPS[random.integers(4)]
    pairs = np.stack([np.arange(number), count - 1 - np.arange(number)], axis=1)
    return hashes, pairs, bits, crowded


def all_pairs_seconds(hashes: np.ndarray) -> float:
    """CPU-seconds of comparing every hash with every other, from 20 of them."""
    started = time.process_time()
    for number in range(20):
        (distance(hashes, hashes[number]) <= MAX_BITS).sum()
    return (time.process_time() - started) / 20 * len(hashes) / 2


def synthetic(count: int, seed: int, crowds: int) -> None:
    """Print time, memory, recall and precision of the search."""
    hashes, pairs, bits, crowded = planted(count, seed, crowds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = near_pairs(hashes)
    seconds = time.process_time() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    in_crowd = (found.pairs >= count // 2) & (found.pairs < count // 2 + crowded)
    outside = found.pairs[~in_crowd.any(axis=1)]
    code, own = outside[:, 0] * count + outside[:, 1], pairs[:, 0] * count + pairs[:, 1]
    returned, near = np.isin(own, code), bits <= MAX_BITS
    others = int((~np.isin(code, own)).sum())
    volume = 4 * sum(math.comb(64, k) for k in range(MAX_BITS + 1))
    expected = (count - crowded) ** 2 / 2 * volume / 2**64
    exact = bool((distance(hashes[found.pairs[:, 0]], hashes[found.pairs[:, 1]]) <= MAX_BITS).all())
    print(f"{count} hashes, seed {seed}: {seconds:.1f} CPU-seconds, +{memory:.2f} GiB")
    print(f"planted at <= {MAX_BITS} bits: {near.sum()}, found {returned[near].sum()}")
    print(f"planted at 5 to 8 bits: {(~near).sum()}, returned {returned[~near].sum()}")
    print(f"other pairs outside crowds: {others}, by chance expected {expected:.1f}")
    print(f"in crowds of {crowded} hashes: {len(found.pairs) - len(outside)} pairs, "
          f"{len(found.skipped)} hashes in too large buckets")  # fmt: skip
    print(f"all {len(found.pairs)} returned pairs are within {MAX_BITS} bits: {exact}")
    brute = all_pairs_seconds(hashes)
    print(f"comparing all pairs: {brute:.0f} CPU-seconds, {brute / seconds:.0f} times as long")


def changes(seed: int) -> dict[str, Change]:
    """What happens to copies, for slices [S, H, W] in [0, 1]."""
    from scipy.ndimage import gaussian_filter
    from skimage.transform import resize

    random = np.random.default_rng(seed)

    def noise(level: float) -> Change:
        return lambda x: np.clip(x + random.normal(0, level, x.shape), 0, 1)

    return {
        "mirrored": lambda x: x[:, :, ::-1],
        "8 bits": lambda x: np.round(x * 255) / 255,
        "other window": lambda x: np.clip((x - 0.02) / 0.9, 0, 1),
        "gamma 0.8": lambda x: x**0.8,
        "noise 2 %": noise(0.02),
        "noise 5 %": noise(0.05),
        "blur 1 px": lambda x: gaussian_filter(x, (0, 1, 1)),
        "224 x 224": lambda x: resize(x, (len(x), 224, 224), order=1, anti_aliasing=True),
        "2 px aside": lambda x: np.roll(x, 2, 2),
        "2 % cut off": lambda x: x[:, max(1, x.shape[1] // 50) :, max(1, x.shape[2] // 50) :],
    }


def real(path: Path, seed: int) -> None:
    """Print distances between subjects, and how many changed copies are found."""
    registry = Registry.open(path)
    rows = {row.volume_id: row for row in registry.volumes("role = 'image'")}
    prints = load_fingerprints(registry, list(rows))
    told = prints.detail >= MIN_DETAIL
    of = [rows[prints.volumes[v]] for v in prints.volume[told]]
    subjects = np.array([row.subject_id for row in of])
    hashes = prints.hashes[told]
    nearest: Counter[int] = Counter()
    for number, own in enumerate(hashes):
        other = distance(hashes, own)[subjects != subjects[number]]
        nearest[int(other.min())] += 1
    print(f"{len(hashes)} slices of {len(set(subjects))} subjects; bits to the nearest slice of "
          f"another subject: {dict(sorted(nearest.items()))}")  # fmt: skip
    print(f"{'copy':14} slices found   volumes found, n = {len(list(rows)[::3])} volumes")
    for name, change in changes(seed).items():
        slices, volumes = [], []
        for row in list(rows.values())[::3]:
            images = windowed(registry.read(row).array, row.window_low, row.window_high)
            before, detail = slice_hashes(images)
            after, _ = slice_hashes(change(images).astype(np.float32))
            near = (distance(before, after) <= MAX_BITS)[detail >= MIN_DETAIL]
            slices += near.tolist()
            volumes.append(near.size > 0 and near.mean() >= MIN_SHARE)
        print(f"{name:14} {np.mean(slices):12.1%} {np.mean(volumes):15.1%}")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=10)
    parser.add_argument("--crowds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--registry", type=Path)
    options = parser.parse_args()
    if options.registry is not None:
        real(options.registry, options.seed)
    else:
        synthetic(int(options.millions * 1e6), options.seed, options.crowds)


if __name__ == "__main__":
    main()
