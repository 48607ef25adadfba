"""De-identification beside five published tools: leaks, preservation, files per CPU-second.

    python tests/benchmarks/bench_deidentify.py --tools DIR

Two corpora of `tests/data_registry/deid_corpus`, which import nothing of any tool: planted files of
all kinds, for leaks and preservation, and routine MR series of 64 to 512 pixels, for speed. Each
tool runs in its own virtual environment below DIR, made at the first use, with the defaults that
its manual recommends; CPU time is measured inside its process, without imports. Ours verifies every
output, the others have no such step; `engine` is ours without it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.data_registry.deid_corpus.generate import corpus, routine, write
from tests.data_registry.deid_corpus.objects import Planted
from tests.data_registry.deid_corpus.score import score

ROOT = Path(__file__).parents[2]
PRESERVED = ("tag_retained", "text_retained", "date_shifted", "uid_consistent", "pixels_retained")
FRAME = """
import json, logging, os, sys, time, warnings
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
source, out = sys.argv[1:3]
files = sorted(os.path.join(d, n) for d, _, names in os.walk(source) for n in names)
os.makedirs(out, exist_ok=True)
{setup}
failed = 0
start = time.process_time()
{loop}
print(json.dumps({{"cpu_s": time.process_time() - start, "failed": failed}}))
"""
EACH = """
for number, path in enumerate(files):
    try:
        {call}
    except Exception:
        failed += 1
"""
TOOLS: dict[str, tuple[str, str]] = {
    "dicom-anonymizer": (
        "from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file, "
        "initialize_actions\nrules = initialize_actions('dicomfields_2026c')",
        EACH.format(call='anonymize_dicom_file(path, f"{out}/{number}.dcm", {}, rules)'),
    ),
    "dicognito": (
        "import pydicom\nfrom dicognito.anonymizer import Anonymizer\ntool = Anonymizer(seed='a')",
        EACH.format(
            call='d = pydicom.dcmread(path); tool.anonymize(d); d.save_as(f"{out}/{number}.dcm")'
        ),
    ),
    "deid": (
        "from deid.dicom import replace_identifiers",
        EACH.format(
            call='os.makedirs(f"{out}/{number}"); '
            'replace_identifiers([path], save=True, output_folder=f"{out}/{number}", force=True)'
        ),
    ),
    "grand-challenge-dicom-de-identifier": (
        "from grand_challenge_dicom_de_identifier.deidentifier import DicomDeidentifier\n"
        "tool = DicomDeidentifier()",
        EACH.format(call='tool.deidentify_file(path, output=f"{out}/{number}.dcm")'),
    ),
    # Its default profile stops at every file with an AE title, and it wants a character set.
    "idiscore": (
        "import pydicom\nfrom idiscore.core import Profile\n"
        "from idiscore.defaults import create_core, get_dicom_rule_sets\n"
        "sets = get_dicom_rule_sets()\n"
        "core = create_core(Profile([sets.basic_profile, sets.retain_safe_private]))",
        EACH.format(
            call="d = pydicom.dcmread(path); d.setdefault('SpecificCharacterSet', 'ISO_IR 6'); "
            'core.deidentify(d).save_as(f"{out}/{number}.dcm")'
        ),
    ),
}
"""Package -> (set-up, loop over files)."""

OURS = (
    "from data_registry.deidentify import PROFILES, deidentify_folder\n"
    "from data_registry.deidentify import find_leaks, headers, sidecars, raw_data\n"
    "from data_registry.deidentify.folder import find_files\nfrom pathlib import Path\n"
    "from data_registry.deidentify.scope import Scope\n"
    "os.rmdir(out)",
    "items = deidentify_folder(Path(source), find_files(Path(source)), Path(out), bytes(32), "
    "PROFILES['tcia-mr'], scope=Scope(extras=('reports',)))\n"
    "failed = sum(item.outcome.status != 'done' for item in items)",
)
ENGINE = (
    "from data_registry.deidentify import PROFILES, deidentify_dicom\n"
    "from data_registry.deidentify.work import write_parts",
    EACH.format(
        call="c = deidentify_dicom(open(path, 'rb').read(), bytes(32), PROFILES['tcia-mr'], "
        "extras=('reports',)); "
        'write_parts(f"{out}/{number}.dcm", c.header, c.pixels)'
    ),
)


def python_of(tool: str, folder: Path) -> Path:
    """The interpreter of the tool's environment; made when there is none."""
    place = folder / tool
    binary = place / "bin" / "python"
    if not (place / ".complete").exists():
        venv.create(place, with_pip=True, clear=True)
        command = [str(binary), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, tool], check=True)
        (place / ".complete").touch()
    return binary


def version_of(tool: str, python: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version({tool!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(python: str | Path, code: tuple[str, str], source: Path, out: Path) -> dict[str, float]:
    setup, loop = code
    program = FRAME.format(setup=setup, loop=loop)
    done = subprocess.run(
        [str(python), "-c", program, str(source), str(out)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, default=Path("bench-tools"))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--patients", type=int, default=14)
    parser.add_argument("--slices", type=int, default=400)
    flags = parser.parse_args()
    planted = list(corpus(flags.seed, flags.patients))
    series = list(routine(flags.seed, (64, 128, 256, 512), flags.slices))
    tokens = sum(len(set(file.tokens)) for file in planted)
    print(f"{len(planted)} planted files, {tokens} tokens; {len(series)} routine files")
    print(f"{'tool':44}{'leaks':>8}{'kept %':>8}{'refused':>9}{'planted/s':>11}{'routine/s':>11}")
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "planted", Path(folder) / "routine"
        write(planted, sources[0])
        write(series, sources[1])
        entries = [("core-mri (engine and verifier)", sys.executable, OURS)]
        entries.append(("core-mri (engine)", sys.executable, ENGINE))
        for tool, code in TOOLS.items():
            python = python_of(tool, flags.tools)
            entries.append((f"{tool} {version_of(tool, python)}", str(python), code))
        for number, (name, python, code) in enumerate(entries):
            speeds = []
            for which, source in enumerate(sources):
                out = Path(folder) / f"out{number}{which}"
                result = run(python, code, source, out)
                count = len((planted, series)[which])
                speeds.append(count / result["cpu_s"])
                if which == 0:
                    row = judge(planted, out, result)
            print(f"{name:44}{row}{speeds[0]:>11.0f}{speeds[1]:>11.0f}", flush=True)


def judge(files: list[Planted], out: Path, result: dict[str, float]) -> str:
    outputs = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    scored = score(files, outputs)
    passed = sum(scored.passed[check] for check in PRESERVED)
    failed = sum(scored.failed[check] for check in PRESERVED)
    kept = 100 * passed / (passed + failed)
    return f"{scored.leaks.total():>8}{kept:>8.2f}{int(result['failed']):>9}"


if __name__ == "__main__":
    main()
