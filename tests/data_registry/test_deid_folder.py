"""A folder: complete outputs or none, resuming, what is refused, and where private lists go."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import struct
import zlib
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from core_mri.errors import ConfigError, CoreMRIError
from data_registry.deidentify import work
from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.cli import main
from data_registry.deidentify.folder import deidentify_folder, find_files
from data_registry.deidentify.headers import deidentify_dicom
from data_registry.deidentify.mapping import read_mapping
from data_registry.deidentify.profile import PROFILES
from tests.data_registry.deid_corpus.generate import corpus
from tests.data_registry.deid_corpus.objects import Planted
from tests.data_registry.deid_corpus.score import found

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
TCIA = PROFILES["tcia-mr"]


@pytest.fixture(scope="module")
def images() -> list[Planted]:
    return [file for file in corpus(70, 2) if file.kind == "classic"]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(KEY.hex())
    return path


def run(source: Path, out: Path, key: bytes = KEY, jobs: int = 1) -> Counter[str]:
    items = deidentify_folder(source, find_files(source), out, key, TCIA, jobs=jobs)
    return Counter(item.outcome.code or "done" for item in items)


def outputs(out: Path) -> list[Path]:
    return sorted(out.rglob("*.dcm"))


def changed(content: bytes, **values: object) -> bytes:
    """A file with other values; pydicom checks none of them."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    with pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset)
    return buffer.getvalue()


def explicit(images: list[Planted]) -> bytes:
    """The first image in explicit little endian."""
    for image in images:
        if pydicom.dcmread(io.BytesIO(image.content)).file_meta.TransferSyntaxUID.endswith("1.2.1"):
            return image.content
    raise AssertionError("no such image")


class TestNames:
    def test_are_the_new_uids(self, source: Path, tmp_path: Path, images: list[Planted]) -> None:
        (source / "a.dcm").write_bytes(images[0].content)
        run(source, tmp_path / "out")
        (path,) = outputs(tmp_path / "out")
        clean = pydicom.dcmread(path)
        assert path.relative_to(tmp_path / "out").parts == (
            clean.PatientID,
            clean.StudyInstanceUID,
            clean.SeriesInstanceUID,
            f"{clean.SOPInstanceUID}.dcm",
        )
        assert clean.file_meta.MediaStorageSOPInstanceUID == clean.SOPInstanceUID
        assert clean.PatientName == clean.PatientID

    def test_same_key_same_file_other_key_other_ids(self, images: list[Planted]) -> None:
        first, again, other = (
            deidentify_dicom(images[0].content, key, TCIA) for key in (KEY, KEY, OTHER)
        )
        assert first.content == again.content
        for name in ("patient", "study", "series", "instance"):
            assert getattr(first, name) != getattr(other, name)

    def test_input_is_not_touched(
        self, source: Path, tmp_path: Path, images: list[Planted]
    ) -> None:
        path = source / "a.dcm"
        path.write_bytes(images[0].content)
        before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
        run(source, tmp_path / "out")
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before
        assert [p.name for p in source.iterdir()] == ["a.dcm"]

    def test_patients_without_number_are_not_merged(self, images: list[Planted]) -> None:
        first = changed(images[0].content, PatientID="", StudyInstanceUID="1.2.3")
        second = changed(images[0].content, PatientID="", StudyInstanceUID="1.2.4")
        assert (
            deidentify_dicom(first, KEY, TCIA).patient
            != deidentify_dicom(second, KEY, TCIA).patient
        )


class TestAgain:
    def snapshot(self, out: Path) -> dict[Path, tuple[bytes, int]]:
        files = [path for path in out.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    def fill(self, source: Path, images: list[Planted]) -> None:
        for number, image in enumerate(images[:3]):
            (source / f"{number}.dcm").write_bytes(image.content)

    def test_adds_nothing(self, source: Path, tmp_path: Path, images: list[Planted]) -> None:
        self.fill(source, images)
        (source / "notes.txt").write_text("hello")
        out = tmp_path / "out"
        first = run(source, out)
        before = self.snapshot(out)
        assert run(source, out) == first == {"done": 3, "DATA-03": 1}
        assert self.snapshot(out) == before
        assert not (out / work.WAITING).exists()

    def test_completes_what_was_cut_off(
        self, source: Path, tmp_path: Path, images: list[Planted]
    ) -> None:
        self.fill(source, images)
        out = tmp_path / "out"
        run(source, out)
        whole = {path: content for path, (content, _) in self.snapshot(out).items()}
        outputs(out)[1].unlink()
        audit = out / AUDIT
        audit.write_text(audit.read_text()[:-40])  # killed in the middle of a line
        (out / work.WAITING).mkdir()
        (out / work.WAITING / "FABC").write_bytes(b"half a file")
        assert run(source, out) == {"done": 3}
        again = {path: content for path, (content, _) in self.snapshot(out).items()}
        assert set(again) == set(whole)
        assert all(again[path] == whole[path] for path in outputs(out))

    def test_a_changed_file_is_done_again(
        self, source: Path, tmp_path: Path, images: list[Planted]
    ) -> None:
        (source / "a.dcm").write_bytes(images[0].content)
        run(source, tmp_path / "out")
        (source / "a.dcm").write_bytes(changed(images[0].content, WindowCenter="421.25"))
        assert run(source, tmp_path / "out") == {"done": 1}
        (path,) = outputs(tmp_path / "out")
        assert pydicom.dcmread(path).WindowCenter == 421.25

    def test_two_images_under_one_uid(
        self, source: Path, tmp_path: Path, images: list[Planted]
    ) -> None:
        (source / "a.dcm").write_bytes(images[0].content)
        (source / "b.dcm").write_bytes(changed(images[0].content, EchoTime="99"))
        (source / "copy.dcm").write_bytes(images[0].content)
        assert run(source, tmp_path / "out") == {"done": 2, "DATA-02": 1}
        assert len(outputs(tmp_path / "out")) == 1


class TestQuarantine:
    """Each with a code, no half-written output, and the batch goes on."""

    def code(self, source: Path, tmp_path: Path, content: bytes, good: bytes) -> str:
        (source / "a_bad").write_bytes(content)
        (source / "b_good").write_bytes(good)
        out = tmp_path / "out"
        counts = run(source, out)
        assert counts.pop("done") == 1
        ((code, _),) = counts.items()
        assert len(outputs(out)) == 1
        assert sorted(p.name for p in out.iterdir() if p.is_file()) == [AUDIT]
        return code

    @pytest.fixture
    def good(self, images: list[Planted]) -> bytes:
        return images[1].content

    def test_no_dicom(self, source: Path, tmp_path: Path, good: bytes) -> None:
        assert self.code(source, tmp_path, b"hello world " * 40, good) == "DATA-03"

    def test_empty(self, source: Path, tmp_path: Path, good: bytes) -> None:
        assert self.code(source, tmp_path, b"", good) == "DATA-03"

    @pytest.mark.parametrize("keep", [0.02, 0.1, 0.3, 0.6, 0.9, 0.99])
    def test_truncated(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes, keep: float
    ) -> None:
        content = explicit(images)
        assert self.code(source, tmp_path, content[: int(len(content) * keep)], good) == "DATA-02"

    def test_random_bytes_anywhere(self, tmp_path: Path, images: list[Planted]) -> None:
        """Every outcome but an unexpected exception is right."""
        import random

        chance = random.Random(3)
        content = explicit(images)
        codes: Counter[str] = Counter()
        path = tmp_path / "broken"
        for _ in range(400):
            broken = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                broken[chance.randrange(132, 9000)] = chance.randrange(256)
            path.write_bytes(broken)
            ((outcome, _),) = work.work(work.Task((("F", str(path), ""),), "", None, KEY, TCIA))
            codes[outcome.code] += 1
        assert set(codes) <= {"", "DATA-02", "DATA-03", "DATA-10", "DATA-13", "DATA-16"}
        assert codes[""] > 50
        assert codes["DATA-02"] > 50

    def test_unknown_vr(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes
    ) -> None:
        content = explicit(images).replace(b"\x18\0\x81\0DS", b"\x18\0\x81\0ZZ")
        assert self.code(source, tmp_path, content, good) == "DATA-02"

    def test_wrong_vr_of_what_the_image_needs(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes
    ) -> None:
        content = explicit(images).replace(b"\x28\0\x10\0US", b"\x28\0\x10\0LO")
        assert self.code(source, tmp_path, content, good) == "DATA-02"

    def test_wrong_vr_elsewhere_goes(self, images: list[Planted]) -> None:
        dataset = pydicom.dcmread(io.BytesIO(explicit(images)))
        dataset.add_new(0x00189073, "CS", "ZQXVWK")  # a number as bytes
        dataset.add_new(0x00181049, "LO", "Zqxvwk")  # a number as text
        dataset.add_new(0x00080022, "SH", "Zqxvwk")  # a date
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset)
        clean = deidentify_dicom(buffer.getvalue(), KEY, TCIA).content
        assert b"ZQXVWK" not in clean.upper()

    @pytest.mark.parametrize("charset", [None, "ISO_IR 999"])
    def test_undeclared_character_set(
        self, source: Path, tmp_path: Path, good: bytes, charset: str | None
    ) -> None:
        latin = next(
            f for f in corpus(71, 8)
            if f.kind == "classic" and b"ISO_IR 100" in f.content
            and b"1.2.840.10008.1.2.1\0" in f.content
        )  # fmt: skip
        new = b"ISO_IR 999" if charset else b"          "
        content = latin.content.replace(b"ISO_IR 100", new)
        assert self.code(source, tmp_path, content, good) == "DATA-02"

    def test_sequences_fifty_deep(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes
    ) -> None:
        inner = Dataset()
        inner.PatientName = "Zqxvwk"
        for _ in range(50):
            outer = Dataset()
            outer.SourceImageSequence = Sequence([inner])
            inner = outer
        content = changed(explicit(images), SourceImageSequence=Sequence([inner]))
        assert self.code(source, tmp_path, content, good) == "DATA-02"

    def test_pixel_data_that_cannot_be(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes
    ) -> None:
        content = changed(explicit(images), Rows=60_000, Columns=60_000, NumberOfFrames="99999")
        assert self.code(source, tmp_path, content, good) == "DATA-02"

    def test_deflate_bomb(self, source: Path, tmp_path: Path, good: bytes) -> None:
        syntax = b"1.2.840.10008.1.2.1.99"
        meta = b"\2\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        zeros = bytes(1 << 24)
        packed = b"".join(packer.compress(zeros) for _ in range(40)) + packer.flush()
        assert self.code(source, tmp_path, bytes(128) + b"DICM" + meta + packed, good) == "DATA-13"

    def test_without_uids(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes
    ) -> None:
        content = changed(images[0].content, StudyInstanceUID=None)
        assert self.code(source, tmp_path, content, good) == "DATA-02"

    def test_text_in_the_pixels(
        self, source: Path, tmp_path: Path, images: list[Planted], good: bytes
    ) -> None:
        content = changed(images[0].content, BurnedInAnnotation="YES")
        assert self.code(source, tmp_path, content, good) == "DATA-16"

    def test_symbolic_links(self, source: Path, tmp_path: Path, good: bytes) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "x.dcm").write_bytes(good)
        (source / "good.dcm").write_bytes(good)
        (source / "file").symlink_to(elsewhere / "x.dcm")
        (source / "folder").symlink_to(elsewhere)
        (source / "nowhere").symlink_to(tmp_path / "none")
        (source / "round").symlink_to(source)
        assert run(source, tmp_path / "out") == {"done": 1, "DATA-13": 4}

    def test_no_permission(
        self, source: Path, tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (source / "a.dcm").write_bytes(good)
        (source / "b.dcm").write_bytes(good)
        if os.geteuid():
            (source / "a.dcm").chmod(0)
        else:  # root may read all: the system call is told to refuse
            whole = Path.open

            def refuse(self: Path, *rest: object, **more: object) -> object:
                if self.name == "a.dcm":
                    raise PermissionError(errno.EACCES, "Permission denied")
                return whole(self, *rest, **more)  # type: ignore[arg-type, call-overload]

            monkeypatch.setattr(Path, "open", refuse)
        assert run(source, tmp_path / "out") == {"done": 1, "DATA-02": 1}

    def test_named_pipe(self, source: Path, tmp_path: Path, good: bytes) -> None:
        (source / "a.dcm").write_bytes(good)
        os.mkfifo(source / "pipe")
        assert run(source, tmp_path / "out") == {"done": 1, "DATA-03": 1}

    def test_a_veto_leaves_no_output(
        self, source: Path, tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from data_registry.deidentify.verify import Finding

        (source / "a.dcm").write_bytes(good)
        monkeypatch.setattr(work.verify, "find_leaks", lambda *_: [Finding("00100010", "name")])
        out = tmp_path / "out"
        assert run(source, out) == {"DATA-11": 1}
        assert not outputs(out)
        line = json.loads((out / AUDIT).read_text().splitlines()[1])
        assert (line["verdict"], line["found"]) == ("vetoed", ["00100010 name"])


class TestLargeFiles:
    def test_are_mapped_not_read(
        self, source: Path, tmp_path: Path, images: list[Planted], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same bytes on both ways."""
        (source / "a.dcm").write_bytes(explicit(images))
        run(source, tmp_path / "read")
        monkeypatch.setattr(work, "_MAP_FROM", 1)
        run(source, tmp_path / "mapped")
        ((first,), (second,)) = outputs(tmp_path / "read"), outputs(tmp_path / "mapped")
        assert first.read_bytes() == second.read_bytes()

    @pytest.mark.slow
    def test_memory_stays_flat(self, source: Path, tmp_path: Path, images: list[Planted]) -> None:
        """400 MiB of frames through a process of its own; half of it would be far too much."""
        import subprocess
        import sys

        dataset = pydicom.dcmread(io.BytesIO(explicit(images)))
        dataset.Rows = dataset.Columns = 512
        dataset.NumberOfFrames = 800
        dataset.PixelData = bytes(512 * 512 * 2 * 800)
        dataset.save_as(source / "a.dcm")
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from data_registry.deidentify import PROFILES, deidentify_folder\n"
            "source, out = map(Path, sys.argv[1:])\n"
            "items = deidentify_folder(source, [source / 'a.dcm'], out, bytes(32), "
            "PROFILES['basic'])\n"
            "print([item.outcome.status for item in items])\n"
            "status = Path('/proc/self/status').read_text()\n"
            "print(status.split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(tmp_path / "out")],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        status, peak_kib = done.stdout.split("\n")[:2]
        assert status == "['done']"
        assert int(peak_kib) < 200 * 1024


class TestPixels:
    def test_bytes_behind_the_last_pixel_go(self, images: list[Planted]) -> None:
        content = changed(explicit(images))
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.PixelData = dataset.PixelData + b"Zqxvwk at the end"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset)
        clean = deidentify_dicom(buffer.getvalue(), KEY, TCIA).content
        assert b"Zqxvwk" not in clean
        original = pydicom.dcmread(io.BytesIO(content)).PixelData
        assert pydicom.dcmread(io.BytesIO(clean)).PixelData == original


class TestCommand:
    def fill(self, source: Path, images: list[Planted]) -> list[str]:
        (source / "a.dcm").write_bytes(images[0].content)
        (source / "b.txt").write_text("hello")
        return images[0].tokens

    def test_json(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted],
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        self.fill(source, images)
        words = [str(source), str(tmp_path / "out"), "--key-file", str(key_file), "--json"]
        assert main(words) == 0
        counts = json.loads(capsys.readouterr().out)
        assert counts["files"] == 2
        assert counts["deidentified"] == 1
        assert counts["quarantined"] == {"DATA-03": 1}
        assert counts["words_removed"] > 5
        assert main([*words, "--strict"]) == 1

    def test_dry_run_writes_nothing(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted],
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        self.fill(source, images)
        words = [str(source), str(tmp_path / "out"), "--key-file", str(key_file), "--json"]
        assert main([*words, "--dry-run"]) == 0
        would = json.loads(capsys.readouterr().out)
        assert not (tmp_path / "out").exists()
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == {**would, "dry_run": False}

    def test_private_files(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted]
    ) -> None:
        tokens = self.fill(source, images)
        out, private = tmp_path / "out", tmp_path / "private"
        words = [
            str(source), str(out), "--key-file", str(key_file),
            "--private-log", str(private / "log.jsonl"),
            "--private-report", str(private / "report"),
            "--maps", str(private / "maps"), "--mapping-store", str(private / "store"),
        ]  # fmt: skip
        assert main(words) == 0
        for path in private.rglob("*"):
            allowed = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == allowed, path
        log = [json.loads(line) for line in (private / "log.jsonl").read_text().splitlines()]
        assert log[0]["path"] == str(source / "a.dcm")
        assert (out / log[0]["output"]).is_file()
        removed = (private / "report" / "removed_words.csv").read_text()
        assert found(tokens, removed.encode())
        original = pydicom.dcmread(source / "a.dcm")
        patients = (private / "maps" / "patient_map.csv").read_text().splitlines()
        assert patients == [
            "id_old,id_new",
            f"{original.PatientID},{log[0]['output'].split('/')[0]}",
        ]
        uids = (private / "maps" / "uid_map.csv").read_text()
        assert f"{original.SOPInstanceUID},2.25." in uids
        assert found(tokens, (private / "store").read_bytes()) == []
        (stored,) = read_mapping(private / "store", KEY)
        assert original.PatientID in stored["patients"]
        with pytest.raises(ConfigError, match="another key"):
            list(read_mapping(private / "store", OTHER))

    @pytest.mark.parametrize(
        "flag", ["--private-log", "--private-report", "--maps", "--mapping-store", "--key-file"]
    )
    def test_private_files_are_refused_inside(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted], flag: str
    ) -> None:
        self.fill(source, images)
        out, registry = tmp_path / "out", tmp_path / "registry"
        registry.mkdir()
        (registry / "registry.json").write_text("{}")
        for place in (out / "private", registry / "private"):
            words = [str(source), str(out), "--key-file", str(key_file), flag, str(place)]
            if flag == "--key-file":
                place.parent.mkdir(exist_ok=True)
                place.touch(mode=0o600)
                place.write_text(KEY.hex())
            with pytest.raises(ConfigError) as caught:
                main(words)
            assert caught.value.code == "CONFIG-05"

    def refused(self, *words: object) -> str:
        with pytest.raises(CoreMRIError) as caught:
            main([str(word) for word in words])
        return caught.value.code

    def test_refusals(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted]
    ) -> None:
        self.fill(source, images)
        empty, full = tmp_path / "empty", tmp_path / "full"
        empty.mkdir()
        full.mkdir()
        (full / "thesis.txt").write_text("mine")
        key = ("--key-file", key_file)
        assert self.refused(empty, tmp_path / "o", *key) == "DATA-01"
        assert self.refused(tmp_path / "none", tmp_path / "o", *key) == "DATA-01"
        assert self.refused(source, tmp_path / "o", "--key-file", tmp_path / "no") == "CONFIG-02"
        assert self.refused(source, full, *key) == "CONFIG-03"
        assert self.refused(source, source / "out", *key) == "CONFIG-05"
        assert self.refused(source, source, *key) == "CONFIG-05"
        (full / AUDIT).write_text("not ours\n")
        assert self.refused(source, full, *key) == "CONFIG-03"
        assert sorted(path.name for path in full.iterdir()) == [AUDIT, "thesis.txt"]

    def test_another_key_or_profile_is_refused(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted]
    ) -> None:
        self.fill(source, images)
        run(source, tmp_path / "out", OTHER)
        assert self.refused(source, tmp_path / "out", "--key-file", key_file) == "CONFIG-04"
        run(source, tmp_path / "mine")
        words = (source, tmp_path / "mine", "--key-file", key_file, "--profile", "basic")
        assert self.refused(*words) == "CONFIG-04"

    @pytest.mark.parametrize("words", [("--pixels", "skip"), ("--faces", "keep")])
    def test_public_and_text_or_faces_is_refused(
        self,
        source: Path,
        tmp_path: Path,
        key_file: Path,
        images: list[Planted],
        words: tuple[str, str],
    ) -> None:
        self.fill(source, images)
        asked = ("--key-file", key_file, "--release", "public", *words)
        assert self.refused(source, tmp_path / "o", *asked) == "CONFIG-05"
        assert not (tmp_path / "o").exists()

    def test_nothing_readable_is_1(self, source: Path, tmp_path: Path, key_file: Path) -> None:
        (source / "b.txt").write_text("hello")
        assert main([str(source), str(tmp_path / "out"), "--key-file", str(key_file)]) == 1

    def test_full_disk(
        self, source: Path, tmp_path: Path, key_file: Path, images: list[Planted],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        self.fill(source, images)

        class FullDisk:
            """`os`, but that nothing can be written."""

            def __getattr__(self, name: str) -> object:
                return getattr(os, name)

            def write(self, _descriptor: int, _content: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(work, "os", FullDisk())
            words = (source, tmp_path / "out", "--key-file", key_file, "--jobs", 1)
            assert self.refused(*words) == "DATA-07"
        assert not outputs(tmp_path / "out")
        assert not (tmp_path / "out" / work.WAITING).exists()
        assert run(source, tmp_path / "out") == {"done": 1, "DATA-03": 1}
