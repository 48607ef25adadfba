"""The command `core-mri data deidentify`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import track

from core_mri.errors import ConfigError
from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.folder import Item, deidentify_folder, find_files
from data_registry.deidentify.identifiers import load_key
from data_registry.deidentify.mapping import Maps, outside, private_writer, write_heads, write_words
from data_registry.deidentify.profile import PROFILES
from data_registry.deidentify.scope import Box, Extra, FacePolicy, PixelMode, Scope


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """De-identify scans by DICOM PS3.15 Annex E, and verify every output before it gets its name.

    Writes OUT/PATIENT/STUDY/SERIES/SOP.dcm with keyed names and OUT/audit.jsonl. NIfTI files, BIDS
    sidecars, ISMRMRD and fastMRI files go to OUT/PATIENT/FILE. Burned-in text and faces stay unless
    --pixels, --faces or --release public ask for more. Running again goes on where it stopped.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A file, or a folder of them; it is only read."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A new folder, or one that this command made with the same key and profile."""
    key_file: Path
    """64 hexadecimal digits, mode 600; keep it apart from the data."""
    profile: Literal["tcia-mr", "basic"] = "tcia-mr"
    """basic: the Basic Profile alone. tcia-mr: with cleaned descriptions, moved dates, patient
    characteristics, safe private attributes and structured content."""
    pixels: PixelMode | None = None
    """check reads three views of each series and quarantines those that show text; blank takes away
    text that the header of the file tells, and quarantines the rest; skip does not look. Taken when
    nothing is said: skip, and check for --release public."""
    faces: FacePolicy | None = None
    """crop takes away all of a head below the orbital rim in front, deface pydeface's mask; heads
    to which the template cannot be fitted surely are quarantined. Taken when nothing is said: keep,
    and crop for --release public."""
    blank_regions: tuple[str, ...] = ()
    """Rectangles R0,C0,R1,C1 (rows and columns, from and to) that are blanked in every DICOM image,
    such as where a scanner writes; with --pixels blank."""
    extras: tuple[Extra, ...] = ()
    """Objects that are no scans and are left out unless named here: captures (secondary captures
    and screenshots, whose pixels must be checked), reports (structured ones, of dose too) and
    documents (encapsulated PDF: only the header is cleaned, nobody reads what is inside)."""
    release: Literal["restricted", "public"] = "restricted"
    """public refuses --pixels skip, --faces keep and documents, and quarantines raw data. What
    comes out may be made public only when a person has looked at it: core-mri data review OUT."""
    jobs: int = 0
    """Worker processes; 0 takes all cores. The output does not depend on it."""
    dry_run: bool = False
    """Do everything but write: what would become of each file."""
    strict: bool = False
    """Exit with 1 when any file was quarantined."""
    json: bool = False
    """Print the counts as JSON."""
    private_log: Path | None = None
    """Write which file each keyed id stands for, with the reason in full. Names patients."""
    private_report: Path | None = None
    """Folder for what a person should look at: words taken out of descriptions, what was
    quarantined, heads with the figures of their fit, and pictures of each before and after. Names
    patients and shows faces."""
    maps: Path | None = None
    """Folder for uid_map.csv and patient_map.csv (id_old,id_new), for MIDI-B. Names patients."""
    mapping_store: Path | None = None
    """File to which old and new ids are appended, encrypted with the project key."""


def main(arguments: Sequence[str]) -> int:
    """Run `core-mri data deidentify`.

    Returns:
        0 when files were de-identified, 1 when none was, or one was quarantined under ``--strict``.

    Raises:
        CoreMRIError: As `load_key`, `find_files` and `deidentify_folder`; CONFIG-05 when OUT lies
            inside IN, something private inside OUT or a registry, or for flags that contradict
            each other.
    """
    flags = tyro.cli(Arguments, prog="core-mri data deidentify", args=arguments)
    scope = _scope(flags)
    key = load_key(flags.key_file, create=False)
    files = find_files(flags.source)
    if flags.source.resolve() in (flags.out.resolve(), *flags.out.resolve().parents):
        raise ConfigError(
            "CONFIG-05", f"the output {flags.out} lies inside the input {flags.source}."
        )
    for private in (
        flags.key_file, flags.private_log, flags.private_report, flags.maps, flags.mapping_store
    ):  # fmt: skip
        if private is not None:
            outside(private, flags.out)
    console = Console(stderr=True)
    items = track(
        deidentify_folder(
            flags.source,
            files,
            flags.out,
            key,
            PROFILES[flags.profile],
            jobs=flags.jobs or len(os.sched_getaffinity(0)),
            dry_run=flags.dry_run,
            scope=scope,
            face_pictures=flags.private_report and flags.private_report / "faces",
        ),
        description="de-identify",
        total=len(files),
        console=console,
        disable=not console.is_terminal,
    )
    tally = _Tally(flags, scope)
    for item in items:
        tally.add(item)
    tally.write_private(key)
    tally.show()
    if flags.strict and tally.quarantined:
        return 1
    return 0 if tally.done else 1


def _scope(flags: Arguments) -> Scope:
    """What to do beside the header: what the release asks, where the user says nothing."""
    public = flags.release == "public"
    scope = Scope(
        pixels=flags.pixels or ("check" if public else "skip"),
        faces=flags.faces or ("crop" if public else "keep"),
        regions=tuple(map(_region, flags.blank_regions)),
        extras=tuple(sorted(set(flags.extras))),
    )
    if public and (scope.pixels == "skip" or scope.faces == "keep"):
        raise ConfigError(
            "CONFIG-05",
            "--release public beside --pixels skip or --faces keep: text and faces would stay.",
            fix="Leave --pixels and --faces out, or give check or blank, and crop or deface.",
        )
    if public and "documents" in scope.extras:
        raise ConfigError(
            "CONFIG-05", "--release public beside --extras documents: nobody reads what is inside."
        )
    if "captures" in scope.extras and scope.pixels == "skip":
        raise ConfigError(
            "CONFIG-05",
            "--extras captures beside --pixels skip: captures show text more often than not.",
            fix="Give --pixels check or blank.",
        )
    if scope.regions and scope.pixels != "blank":
        raise ConfigError("CONFIG-05", "--blank-regions needs --pixels blank.")
    return scope


def _region(text: str) -> Box:
    try:
        top, left, bottom, right = map(int, text.split(","))
    except ValueError:
        top = left = bottom = right = -1
    if not (0 <= top < bottom and 0 <= left < right):
        raise ConfigError(
            "CONFIG-01",
            f"--blank-regions {text}: not R0,C0,R1,C1 with 0 <= R0 < R1 and 0 <= C0 < C1.",
        )
    return top, left, bottom, right


class _Tally:
    """Counts for everybody, and lists for those who may see names."""

    def __init__(self, flags: Arguments, scope: Scope) -> None:
        self.done = self.repeated = 0
        self.quarantined: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._flags, self._scope = flags, scope
        self._actions: Counter[str] = Counter()
        self._words: Counter[str] = Counter()
        self._removed: Counter[str] = Counter()
        self._held: list[tuple[str, str, str]] = []
        self._heads: dict[str, dict[str, object]] = {}
        self._maps = Maps()
        self._log = private_writer(flags.private_log) if flags.private_log else None

    def add(self, item: Item) -> None:
        outcome, details = item.outcome, item.details
        self.repeated += outcome.repeated
        if outcome.face:
            self._heads.setdefault(
                outcome.group or outcome.file,
                {
                    "first_file": outcome.file,
                    "path": item.path,
                    "code": outcome.code,
                    **outcome.face,
                },
            )
        if outcome.status == "done":
            self.done += 1
            self._actions.update(outcome.actions)
            self._words["removed"] += outcome.words_removed
            self._removed.update(details.removed)
            self._maps.add(details.patient, details.uids)
        else:
            held = self.quarantined if outcome.status == "quarantined" else self.left_out
            held[outcome.code] += 1
            self._held.append((str(item.path), outcome.code, details.message))
        if self._log is not None:
            line = {
                "id": outcome.file,
                "path": str(item.path),
                "output": outcome.output,
                "status": outcome.status,
                "code": outcome.code,
                "message": details.message,
            }
            self._log.write(json.dumps(line) + "\n")

    def write_private(self, key: bytes) -> None:
        if self._log is not None:
            self._log.close()
        flags = self._flags
        if flags.private_report is not None:
            write_words(flags.private_report / "removed_words.csv", self._removed.most_common())
            with private_writer(flags.private_report / "quarantined.jsonl") as stream:
                for path, code, message in self._held:
                    record = {"path": path, "code": code, "message": message}
                    stream.write(json.dumps(record) + "\n")
            write_heads(flags.private_report / "heads.csv", list(self._heads.values()))
        if flags.maps is not None:
            self._maps.write_csv(flags.maps)
        if flags.mapping_store is not None:
            self._maps.append_encrypted(flags.mapping_store, key)

    def show(self) -> None:
        total = self.done + self.quarantined.total() + self.left_out.total()
        if self._flags.json:
            counts = {
                "files": total,
                "deidentified": self.done,
                "from_earlier_runs": self.repeated,
                "quarantined": dict(sorted(self.quarantined.items())),
                "left_out": dict(sorted(self.left_out.items())),
                "actions": dict(sorted(self._actions.items())),
                "words_removed": self._words["removed"],
                "dry_run": self._flags.dry_run,
            }
            print(json.dumps(counts))
            return
        would = "would be " if self._flags.dry_run else ""
        print(
            f"{self.done} of {total} files {would}de-identified and verified, "
            f"{self.quarantined.total()} quarantined{_reasons(self.quarantined)}"
            f"{f', {self.left_out.total()} left out' if self.left_out else ''}"
            f"{_reasons(self.left_out)}; {self.repeated} known from earlier runs.\n"
            f"{self._words['removed']} words taken out of descriptions. "
            f"{_PIXELS[self._scope.pixels]} {_FACES[self._scope.faces]}"
        )
        if not self._flags.dry_run:
            print(f"Every file with its keyed id: {self._flags.out / AUDIT}")
            print(f"Next: core-mri data verify {self._flags.source} {self._flags.out}")
            if self._flags.release == "public":
                print(
                    "Not public before a person has looked at it: core-mri data review "
                    f"{self._flags.out}; with --status it says what is open."
                )


_PIXELS = {
    "skip": "Pixel data were not read: burned-in text stays.",
    "check": "Three views of each series were read for text.",
    "blank": "Three views of each series were read for text; the header's was blanked.",
}
_FACES = {
    "keep": "Faces stay.",
    "crop": "Heads were cropped at the orbital rim.",
    "deface": "Heads were defaced; eyes may stay.",
}


def _reasons(counts: Counter[str]) -> str:
    reasons = ", ".join(f"{code}: {n}" for code, n in sorted(counts.items()))
    return f" ({reasons})" if reasons else ""
