"""The verifier: it vetoes when a rule of the engine fails, whichever, and passes what is clean."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pydicom
import pytest

from core_mri.errors import CoreMRIError
from data_registry.deidentify import headers, rules, seeds, subject, treatments
from data_registry.deidentify.cli import main as deidentify
from data_registry.deidentify.headers import deidentify_dicom
from data_registry.deidentify.policy import policy
from data_registry.deidentify.profile import PROFILES, Profile
from data_registry.deidentify.rules import Rule, rules_of
from data_registry.deidentify.verify import Finding, find_leaks, find_text
from data_registry.deidentify.verify_cli import main as verify
from data_registry.deidentify.verify_reader import scan
from tests.data_registry.deid_corpus.generate import corpus, write
from tests.data_registry.deid_corpus.objects import Planted

KEY = bytes(range(32))
TCIA = PROFILES["tcia-mr"]

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def files() -> list[Planted]:
    """Plain syntaxes only: what is broken below must reach the bytes."""
    return [file for file in corpus(31, 4) if file.kind not in ("burned in", "directory")]


@pytest.fixture(autouse=True)
def fresh_rules() -> None:
    """Rules and subjects are remembered by the engine; a broken one must not outlive its test."""
    rules_of.cache_clear()
    seeds._known_subject.cache_clear()
    seeds._seed_kind.cache_clear()


def vetoes(files: list[Planted], profile: Profile = TCIA) -> list[Finding]:
    found: list[Finding] = []
    for file in files:
        try:
            clean = deidentify_dicom(file.content, KEY, profile)
        except CoreMRIError:
            continue
        found += find_leaks(file.content, clean.content)
    return found


@pytest.mark.parametrize("name", PROFILES)
def test_passes_what_is_clean(files: list[Planted], name: str) -> None:
    assert vetoes(files, PROFILES[name]) == []


def _keep_action(letter: str) -> Break:
    """Every attribute with this action stays as it is."""
    find = rules.find_rule

    def broken(*place: object) -> Rule:
        rule = find(*place)  # type: ignore[arg-type]
        return Rule("K", treatments.keep) if rule.action == letter else rule

    return lambda patch: patch.setattr(headers, "find_rule", broken)


def _keep_vr(vr: bytes) -> Break:
    find = rules.find_rule

    def broken(*place: object) -> Rule:
        return Rule("K", treatments.keep) if place[-1] == vr else find(*place)  # type: ignore[arg-type]

    return lambda patch: patch.setattr(headers, "find_rule", broken)


def _keep_tag(tag: int) -> Break:
    find = rules.find_rule

    def broken(*place: object) -> Rule:
        return Rule("K", treatments.keep) if place[-2] == tag else find(*place)  # type: ignore[arg-type]

    return lambda patch: patch.setattr(headers, "find_rule", broken)


def _top_level_only(patch: pytest.MonkeyPatch) -> None:
    """What dicom-anonymizer does: items are copied."""
    find = rules.find_rule

    def broken(*place: object) -> Rule:
        within = place[2]
        rule = find(*place)  # type: ignore[arg-type]
        return rule if not within or rule.treat is treatments.keep else Rule("K", treatments.keep)

    patch.setattr(headers, "find_rule", broken)


def _keep_private(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(headers, "treat_private", lambda *place_and_value: place_and_value[-1])


def _keep_preamble(patch: pytest.MonkeyPatch) -> None:
    original = headers.deidentify_dicom

    def with_old_preamble(file: bytes, key: bytes, profile: Profile) -> object:
        clean = original(file, key, profile)
        return dataclasses.replace(clean, header=file[:128] + clean.header[128:])

    patch.setattr("tests.data_registry.test_deid_verify.deidentify_dicom", with_old_preamble)


def _keep_meta(patch: pytest.MonkeyPatch) -> None:
    """AE titles and private information of group 0002."""
    original = headers.deidentify_dicom

    def with_old_meta(file: bytes, key: bytes, profile: Profile) -> object:
        clean = original(file, key, profile)
        parsed = headers.parse(file)
        old = b"".join(file[e.start : e.end] for e in parsed.meta if e.tag > 0x00020013)
        new = headers.parse(clean.content).meta
        end = new[-1].end
        length = (end - new[1].start + len(old)).to_bytes(4, "little")
        group = clean.header[:132] + clean.header[132:140] + length + clean.header[144:end] + old
        return dataclasses.replace(clean, header=group + clean.header[end:])

    patch.setattr("tests.data_registry.test_deid_verify.deidentify_dicom", with_old_meta)


def _no_seeds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(seeds, "_seed_kind", lambda *_: None)


def _no_shift(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subject, "date_shift_days", lambda *_: 0)


def _no_time_shift(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subject, "time_shift", lambda *_: timedelta(0))


def _old_uids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(treatments, "keyed_uid", lambda _, uid: uid)


def _padding_stays(patch: pytest.MonkeyPatch) -> None:
    original = headers._with_pixels

    def broken(parsed: headers.Parsed, header: bytes) -> tuple[bytes, object]:
        made, pixels = original(parsed, header)
        padding = b"".join(
            bytes(parsed.content[e.start : e.end]) for e in parsed.elements if e.tag == 0xFFFCFFFC
        )
        return made, bytes(pixels) + padding

    patch.setattr(headers, "_with_pixels", broken)


def _allow_any_word(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(treatments, "split_text", lambda text, *_: (text, []))


def _overlays_stay(patch: pytest.MonkeyPatch) -> None:
    find = rules.find_rule

    def broken(*place: object) -> Rule:
        tag = place[-2]
        overlay = isinstance(tag, int) and tag >> 24 == 0x60
        return Rule("K", treatments.keep) if overlay else find(*place)  # type: ignore[arg-type]

    patch.setattr(headers, "_OVERLAY_DATA", -1)
    patch.setattr(headers, "find_rule", broken)


def _local_codes_are_published(patch: pytest.MonkeyPatch) -> None:
    listed = policy()
    changed = dataclasses.replace(listed, coding_schemes=listed.coding_schemes | {"99HOSPITAL"})
    patch.setattr(treatments, "policy", lambda: changed)


RULES: dict[str, Break] = {
    "removed attributes stay": _keep_action("X"),
    "emptied attributes stay": _keep_action("Z"),
    "dummies are the originals": _keep_action("D"),
    "cleaned attributes stay": _keep_action("C"),
    "UIDs stay": _keep_action("U"),
    "UIDs are not keyed": _old_uids,
    "person names stay": _keep_vr(b"PN"),
    "AE titles stay": _keep_vr(b"AE"),
    "dates stay": _keep_vr(b"DA"),
    "date-times stay": _keep_vr(b"DT"),
    "times stay": _keep_vr(b"TM"),
    "long strings stay": _keep_vr(b"LO"),
    "short strings stay": _keep_vr(b"SH"),
    "long texts stay": _keep_vr(b"LT"),
    "dates are moved by no day": _no_shift,
    "times are moved by nothing": _no_time_shift,
    "only the top level is cleaned": _top_level_only,
    "private attributes stay": _keep_private,
    "the preamble stays": _keep_preamble,
    "the file meta group stays": _keep_meta,
    "trailing padding stays": _padding_stays,
    "overlays stay": _overlays_stay,
    "any word may stay": _allow_any_word,
    "local codes are published ones": _local_codes_are_published,
    "birth dates stay": _keep_tag(0x00100030),
    "accession numbers stay": _keep_tag(0x00080050),
    "device serial numbers stay": _keep_tag(0x00181000),
    "institutions stay": _keep_tag(0x00080080),
    "descriptions of series stay": _keep_tag(0x0008103E),
    "other patient ids stay": _keep_tag(0x00101000),
}


@pytest.mark.parametrize("name", RULES)
def test_vetoes_without_one_rule(
    files: list[Planted], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    RULES[name](monkeypatch)
    found = vetoes(files)
    assert found, "the verifier saw no leak"
    tokens = {token.lower() for file in files for token in file.tokens}
    assert not any(token in f"{f.where} {f.kind}".lower() for f in found for token in tokens)


def test_own_words_in_technical_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family name in an attribute that Table E.1-1 does not list."""
    file = next(iter(corpus(40, 1)))
    dataset = pydicom.dcmread(io.BytesIO(file.content))
    family = str(dataset.PatientName.family_name)
    dataset.ReceiveCoilName = f"Coil {family}"
    dataset.ScanOptions = family.upper()[:16]
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    content = buffer.getvalue()
    clean = deidentify_dicom(content, KEY, TCIA).content
    assert family.lower().encode() not in clean.lower()
    assert find_leaks(content, clean) == []
    _no_seeds(monkeypatch)
    seeds._known_subject.cache_clear()
    leaky = deidentify_dicom(content, KEY, TCIA).content
    assert find_leaks(content, leaky)


class TestHiding:
    """Identifiers that are written in another way."""

    def leaks(self, hide: Callable[[str], bytes], tag: int = 0x00181020) -> list[Finding]:
        file = next(iter(corpus(41, 1)))
        original = pydicom.dcmread(io.BytesIO(file.content))
        clean = pydicom.dcmread(io.BytesIO(deidentify_dicom(file.content, KEY, TCIA).content))
        clean[tag].value = hide(str(original.OtherPatientIDs[0])).decode("latin-1")
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, clean)
        return find_leaks(file.content, buffer.getvalue())

    def test_as_it_is(self) -> None:
        assert self.leaks(str.encode)

    def test_inside_a_word(self) -> None:
        assert self.leaks(lambda text: f"v{text}x".encode())

    def test_as_utf_16(self) -> None:
        assert self.leaks(lambda text: text.encode("utf-16-le"))

    @pytest.mark.parametrize("shift", range(3))
    def test_as_base64(self, shift: int) -> None:
        assert self.leaks(lambda text: base64.b64encode(b"x" * shift + f"id {text} id".encode()))

    @pytest.mark.parametrize(
        "form",
        ["{0}{1}{2}", "{0}-{1}-{2}", "{2}.{1}.{0}", "{1}/{2}/{0}", "{2}/{1}/{0}", "{0} {1} {2}"],
    )
    def test_dates(self, form: str) -> None:
        file = next(iter(corpus(42, 1)))
        original = pydicom.dcmread(io.BytesIO(file.content))
        born = original.PatientBirthDate
        clean = pydicom.dcmread(io.BytesIO(deidentify_dicom(file.content, KEY, TCIA).content))
        clean.SoftwareVersions = "v " + form.format(born[:4], born[4:6], born[6:])
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, clean)
        assert ("00181020", "date") in find_leaks(file.content, buffer.getvalue())

    def test_changed_pixels(self) -> None:
        file = next(iter(corpus(43, 1)))
        clean = bytearray(deidentify_dicom(file.content, KEY, TCIA).content)
        clean[-5] ^= 1
        assert ("pixels", "pixels") in find_leaks(file.content, bytes(clean))


class TestReader:
    def test_agrees_with_pydicom(self) -> None:
        for file in corpus(50, 7):
            dataset = pydicom.dcmread(io.BytesIO(file.content))
            wanted = [e.tag for e in dataset.iterall() if e.VR != "SQ"]
            # A sequence without items is a value without bytes to the reader.
            got = [
                v.tag
                for v in scan(file.content).values
                if v.tag >> 16 != 2 and (len(v.raw) or dataset_vr(v.tag) != "SQ")
            ]
            assert sorted(got) == sorted(wanted), file.kind

    def test_cut_off(self) -> None:
        file = next(iter(corpus(51, 1)))
        with pytest.raises(CoreMRIError, match="cannot read it to its end"):
            scan(file.content[:-100])


def dataset_vr(tag: int) -> str:
    try:
        return pydicom.datadict.dictionary_VR(tag)
    except KeyError:
        return "UN"


class TestText:
    def test_finds_words_numbers_and_dates(self) -> None:
        assert find_text(b"scan of Zqxvwk", "h", names=["Zqxvwk^Anna"])
        assert find_text(b"on 2011-02-13", "h", names=["20110213"])
        assert find_text(b"id 4711123", "h", texts=["4711123"])
        assert find_text(b"knee t1", "h", texts=["knee t1 scan"]) == []


class TestCommand:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path]:
        key = tmp_path / "key"
        key.touch(mode=0o600)
        key.write_text("11" * 32)
        source, out = tmp_path / "in", tmp_path / "out"
        write(list(corpus(60, 1)), source)
        words = [str(source), str(out), "--key-file", str(key), "--jobs", "1"]
        assert deidentify([*words, "--extras", "reports"]) == 0
        return source, out

    def test_passes(self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert verify([*map(str, folders), "--jobs", "1", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report == {"passed": 9, "vetoed": {}, "without_original": []}

    def test_vetoes_a_leak_and_names_no_value(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, out = folders
        leaky = next(iter(sorted(out.rglob("*.dcm"))))
        original = next(p for p in sorted(source.rglob("*.dcm")))
        name = str(pydicom.dcmread(original).PatientName.family_name)
        dataset = pydicom.dcmread(leaky)
        dataset.StudyComments = name
        dataset.save_as(leaky)
        capsys.readouterr()
        assert verify([str(source), str(out), "--jobs", "1"]) == 1
        shown = capsys.readouterr().out
        assert "1 vetoed" in shown
        assert name not in shown

    def test_an_output_without_original_fails(self, folders: tuple[Path, Path]) -> None:
        source, out = folders
        next(iter(sorted(source.rglob("*.dcm")))).unlink()
        assert verify([str(source), str(out), "--jobs", "1"]) == 1

    def test_originals_themselves_are_vetoed(self, folders: tuple[Path, Path]) -> None:
        assert verify([str(folders[0]), str(folders[0]), "--jobs", "1"]) == 1

    def test_numbers_of_file_names(self, folders: tuple[Path, Path]) -> None:
        source, out = folders
        output = next(iter(sorted(out.rglob("*.dcm"))))
        number = output.stem[-4:]
        for index, original in enumerate(sorted(source.rglob("*.dcm"))):
            (source / str(index)).mkdir()
            original.rename(source / str(index) / f"{number}.dcm")
        assert verify([*map(str, folders), "--jobs", "1"]) == 0  # in a keyed UID by chance
        named = output.with_name(f"scan-{number}.dcm")
        output.rename(named)
        assert verify([*map(str, folders), "--jobs", "1"]) == 1
        uid = "2.25.271724794637377816680852049994314117279.dcm"
        for original in sorted(source.rglob("*.dcm")):
            original.rename(original.with_name(uid))
        named.rename(output)
        assert verify([*map(str, folders), "--jobs", "1"]) == 0
        output.rename(output.with_name(uid))
        assert verify([*map(str, folders), "--jobs", "1"]) == 1

    def test_words_in_the_audit(self, folders: tuple[Path, Path]) -> None:
        audit = folders[1] / "audit.jsonl"
        audit.write_text(audit.read_text() + json.dumps({"file": "Zqxvwk"}) + "\n")
        assert verify([*map(str, folders), "--jobs", "1"]) == 1
