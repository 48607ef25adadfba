"""Keyed identifiers: deterministic, keyed, unambiguous."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from core_mri.errors import ConfigError
from data_registry.deidentify.identifiers import (
    MAX_SHIFT_DAYS,
    date_shift_days,
    file_id,
    keyed_uid,
    load_key,
    patient_pseudonym,
    pseudonym,
    time_shift,
)
from data_registry.deidentify.treatments import move_date, move_time

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))


def reference(*parts: str) -> bytes:
    """HMAC-SHA256 written out: every part after its length in 8 big-endian bytes."""
    message = b"".join(len(p.encode()).to_bytes(8, "big") + p.encode() for p in parts)
    return hmac.new(KEY, message, hashlib.sha256).digest()


class TestPseudonym:
    def test_matches_the_definition(self) -> None:
        expected = base64.b32encode(reference("pseudonym", "a", "b")[:10]).decode()
        assert pseudonym(KEY, "a", "b") == "P" + expected
        assert len(pseudonym(KEY, "a")) == 17

    def test_parts_are_separated(self) -> None:
        texts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c")]
        assert len({pseudonym(KEY, *parts) for parts in texts}) == len(texts)

    def test_other_key_other_result(self) -> None:
        assert pseudonym(KEY, "x") != pseudonym(OTHER, "x")

    def test_same_in_another_process(self) -> None:
        code = (
            "from data_registry.deidentify.identifiers import pseudonym;"
            "print(pseudonym(bytes(range(32)), 'x'))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "7"},
            cwd=Path(__file__).parents[2],
        )
        assert run.stdout.strip() == pseudonym(KEY, "x")

    def test_any_text_is_accepted(self) -> None:
        assert pseudonym(KEY, "山田^太郎") != pseudonym(KEY, "山田^次郎")
        assert pseudonym(KEY, "\udcff")

    def test_purposes_do_not_meet(self) -> None:
        assert pseudonym(KEY, "x")[1:] != file_id(KEY, "x")[1:]


class TestPatient:
    def test_issuer_separates_hospitals(self) -> None:
        assert patient_pseudonym(KEY, "1", "A") != patient_pseudonym(KEY, "1", "B")

    def test_padding_does_not_matter(self) -> None:
        assert patient_pseudonym(KEY, " 1 ") == patient_pseudonym(KEY, "1")

    def test_nameless_patients_are_not_merged(self) -> None:
        first = patient_pseudonym(KEY, "", study_uid="1.2")
        assert first != patient_pseudonym(KEY, "", study_uid="1.3")
        assert first == patient_pseudonym(KEY, "  ", study_uid="1.2")


class TestUid:
    def test_matches_the_definition(self) -> None:
        number = int.from_bytes(reference("uid", "1.2.3")[:16], "big")
        assert keyed_uid(KEY, "1.2.3") == f"2.25.{number}"

    def test_is_a_valid_uid(self) -> None:
        from pydicom.uid import UID

        for number in range(200):
            uid = keyed_uid(KEY, f"1.2.{number}")
            assert UID(uid).is_valid
            assert len(uid) <= 64

    @pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.4"])
    def test_uids_of_the_standard_stay(self, uid: str) -> None:
        assert keyed_uid(KEY, uid) == uid

    def test_look_alikes_do_not_stay(self) -> None:
        assert keyed_uid(KEY, "1.2.840.100080.1").startswith("2.25.")


class TestDateShift:
    def test_range_and_spread(self) -> None:
        shifts = [date_shift_days(KEY, str(n)) for n in range(3000)]
        assert -MAX_SHIFT_DAYS <= min(shifts) < -MAX_SHIFT_DAYS * 0.99
        assert -MAX_SHIFT_DAYS * 0.01 < max(shifts) <= -1

    def test_belongs_to_the_subject(self) -> None:
        assert date_shift_days(KEY, "a") == date_shift_days(KEY, "a")
        assert date_shift_days(KEY, "a") != date_shift_days(OTHER, "a")


class TestTimeShift:
    def test_range(self) -> None:
        minutes = [abs(time_shift(KEY, str(n)).total_seconds()) / 60 for n in range(2000)]
        assert 1 <= min(minutes) < 2
        assert 59 < max(minutes) <= 60
        assert {time_shift(KEY, str(n)).total_seconds() > 0 for n in range(20)} == {True, False}

    def test_belongs_to_the_subject(self) -> None:
        assert time_shift(KEY, "a") == time_shift(KEY, "a") != time_shift(OTHER, "a")
        assert time_shift(KEY, "a") != time_shift(KEY, "b")


class TestMoved:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("20200301", "20200229"), ("2020.03.01", "20200229"), ("20200230", ""), ("2020", ""),
            ("00010101", ""), ("Smith", ""), ("", ""),
        ],
    )  # fmt: skip
    def test_dates(self, old: str, new: str) -> None:
        assert move_date(old, timedelta(days=-1)) == new

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("101112.345678", "110112.845678"), ("101112", "110112"), ("1011", "1101"),
            ("10", "10"), ("10:11:12", "110112"), ("235959.9", "005000.4"),
            ("101112.3", "110112.8"), ("251112", ""), ("Smith", ""),
        ],
    )  # fmt: skip
    def test_times(self, old: str, new: str) -> None:
        assert move_time(old, timedelta(minutes=50, microseconds=500_000)) == new

    def test_intervals_stay(self) -> None:
        shift = time_shift(KEY, "x")
        first, second = (move_time(t, shift) for t in ("101112.000001", "101114.500001"))
        seconds = [int(t[:2]) * 3600 + int(t[2:4]) * 60 + float(t[4:]) for t in (first, second)]
        assert seconds[1] - seconds[0] == pytest.approx(2.5, abs=1e-6)


class TestKeyFile:
    def test_is_made_once_and_private(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "key"
        key = load_key(path, create=True)
        assert len(key) == 32
        assert load_key(path, create=True) == load_key(path, create=False) == key
        assert path.stat().st_mode & 0o777 == 0o600

    def test_missing_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="openssl rand") as caught:
            load_key(tmp_path / "key", create=False)
        assert caught.value.code == "CONFIG-02"

    @pytest.mark.parametrize("text", ["", "abcd", "z" * 64, "ab" * 31, "not a key"])
    def test_weak_or_wrong(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "key"
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError) as caught:
            load_key(path, create=True)
        assert caught.value.code == "CONFIG-01"
        assert not text or text not in caught.value.message.replace(str(path), "")

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_readable_by_others(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "key"
        load_key(path, create=True)
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            load_key(path, create=False)
