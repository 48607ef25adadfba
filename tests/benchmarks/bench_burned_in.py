"""Burned-in text: recall by size and contrast, clean volumes flagged, CPU time, beside tesseract.

    CORE_MRI_DATA=DIR python tests/benchmarks/bench_burned_in.py

Text is rendered on the volumes of CORE_MRI_DATA (without it on phantoms only), as
`tests/data_registry/burned_text.py` describes: five fonts, 8 to 24 pixels, three contrasts (part of
the bright tissue, added to what is there), corners and over tissue, one place in all slices. Both
readers get the same three views; tesseract (if installed) gets them twice as large, as its manual
advises. A volume counts as found when one view shows four letters or digits in a row of text.
Then all NIfTI files of CORE_MRI_DATA as they are: many show one patient, and half are label maps.
Last, every image volume of CORE_MRI_DATA that `data ingest` takes, whatever its format, rows either
way up: the patients of whom one is flagged, since volumes of one patient are not independent.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[2]))

from core_mri import read_volume
from core_mri.errors import CoreMRIError
from core_mri.physics.phantoms import phantom_volume
from data_registry import IngestConfig, Registry, ingest, load_sources
from data_registry.deidentify.burned_in import display, read_image
from data_registry.deidentify.nifti_text import shows_text
from tests.data_registry.burned_text import Series, a_burn, burn

View = npt.NDArray[np.uint8]


def real() -> Iterator[Series]:
    """Images of CORE_MRI_DATA, slices first, at most 16 of them; isotropic ones in three planes."""
    data = os.environ.get("CORE_MRI_DATA")
    if not data:
        return
    root = Path(data)
    paths = [
        path
        for pattern in ("*.nii.gz", "*.nii", "*.nrrd")
        for path in sorted(root.rglob(pattern))
        if not any(word in path.name.lower() for word in ("seg", "label", "mask"))
        and "label" not in str(path.parent).lower()
    ]
    paths += sorted(
        {path.parent for path in root.rglob("*.dcm") if "dicom" not in path.parts[-3:-1]}
    )
    for path in paths:
        try:
            array = np.asarray(read_volume(path).array)
        except CoreMRIError:
            continue
        if array.ndim != 3 or float(array.max()) <= 4:
            continue
        shortest = int(np.argmin(array.shape))
        for axis in range(3) if min(array.shape) >= 96 else (shortest,):
            series = np.moveaxis(array, axis, 0).astype(np.float32)
            if min(series.shape[1:]) < 96:
                continue
            middle = series[len(series) // 4 : max(len(series) * 3 // 4, 1)]
            yield middle[:: max(1, len(middle) // 16)][:16] - min(float(middle.min()), 0.0)


def synthetic() -> Iterator[Series]:
    for number, region in enumerate(("brain", "knee", "prostate", "abdomen")):
        for sequence in ("T1", "T2"):
            volume, _ = phantom_volume(region, number, sequence, size=224, num_slices=9)
            yield np.moveaxis(np.asarray(volume.array), 2, 0).astype(np.float32)


def views(series: Series) -> list[View]:
    return [display(series[0]), display(series[len(series) // 2]), display(series.min(axis=0))]


def ours(view: View) -> bool:
    return bool(read_image(view))


def tesseract(view: View) -> bool:
    from PIL import Image

    large = Image.fromarray(view).resize((view.shape[1] * 2, view.shape[0] * 2))
    import io

    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    done = subprocess.run(
        ["tesseract", "-", "-", "--psm", "11"],
        input=buffer.getvalue(), capture_output=True, check=False,
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
    )  # fmt: skip
    return any(
        sum(c.isalnum() for c in line) >= 4
        for line in done.stdout.decode("utf-8", "replace").split("\n")
    )


def cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--burns", type=int, default=20, help="texts on each volume")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    chance = random.Random(flags.seed)
    readers: dict[str, Callable[[View], bool]] = {"core-mri": ours}
    if shutil.which("tesseract"):
        readers["tesseract"] = tesseract
    ours(np.zeros((64, 64), np.uint8))  # loads the models
    found: dict[str, dict[tuple[int, float], list[bool]]] = {n: defaultdict(list) for n in readers}
    flagged: dict[str, dict[str, list[bool]]] = {n: defaultdict(list) for n in readers}
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for kind, source in (("real", real()), ("synthetic", synthetic())):
        for series in source:
            written = [
                (how, burn(series, how)) for how in (a_burn(chance) for _ in range(flags.burns))
            ]
            for name, reader in readers.items():
                start = time.process_time() if name == "core-mri" else cpu()
                flagged[name][kind].append(any(reader(view) for view in views(series)))
                end = time.process_time() if name == "core-mri" else cpu()
                spent[name].append(end - start)
                for how, text in written:
                    if text is not None:
                        hit = any(reader(view) for view in views(text))
                        found[name][how.size, how.contrast].append(hit)
    for name in readers:
        print(f"\n{name}: CPU ms per clean volume {1e3 * np.mean(spent[name]):.0f}")
        rows = found[name]
        for size in sorted({size for size, _ in rows}):
            cells = []
            for contrast in sorted({contrast for _, contrast in rows}):
                hits = rows[size, contrast]
                cells.append(f"{contrast}: {sum(hits)}/{len(hits)}")
            print(f"  {size:>2} px   " + "   ".join(cells))
        large = [hit for (size, _), hits in rows.items() if size >= 10 for hit in hits]
        print(
            f"  >= 10 px, all contrasts: {sum(large)}/{len(large)} = {100 * np.mean(large):.2f} %"
        )
        for kind, hits in flagged[name].items():
            count, total = sum(hits), len(hits)
            print(
                f"  clean {kind} volumes flagged: {count}/{total}, "
                f"95 % bound {bound(count, total):.2%}"
            )
    nifti()
    patients()


def patients() -> None:
    """Patients of whom a clean volume is flagged."""
    if "CORE_MRI_DATA" not in os.environ:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "registry"
        ingest(IngestConfig(registry=path, sources=load_sources("core_mri_data")))
        registry = Registry.open(path)
        hits: dict[str, list[bool]] = defaultdict(list)
        for row in registry.volumes("role = 'image' AND least(rows, columns) >= 32"):
            seen = views(np.asarray(registry.read(row).array))
            shown = [way for view in seen for way in (view, np.ascontiguousarray(view[::-1]))]
            hits[row.subject_id].append(any(read_image(view) for view in shown))
    count, total = sum(map(any, hits.values())), len(hits)
    print(
        f"patients of whom a clean volume is flagged: {count}/{total}, 95 % bound "
        f"{bound(count, total):.2%}; volumes {sum(map(sum, hits.values()))}/"
        f"{sum(map(len, hits.values()))}"
    )


def nifti() -> None:
    """Whole NIfTI files: flagged, and CPU time."""
    if "CORE_MRI_DATA" not in os.environ:
        return
    paths = sorted(Path(os.environ["CORE_MRI_DATA"]).rglob("*.nii*"))
    start = time.process_time()
    flagged = sum(map(shows_text, paths))
    spent = (time.process_time() - start) / len(paths)
    print(f"\nNIfTI files flagged: {flagged}/{len(paths)}, CPU ms per file {1e3 * spent:.0f}")


def bound(count: int, total: int) -> float:
    """One-sided Clopper-Pearson upper limit."""
    from scipy.stats import beta

    return 1.0 if count == total else float(beta.ppf(0.95, count + 1, total - count))


if __name__ == "__main__":
    main()
