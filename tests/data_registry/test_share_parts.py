"""What serves shared data, without a server: ranges, open files, counts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_registry.governance.downloads import Downloads, Fetched, fetched
from data_registry.governance.ranges import Part, may_be_partial, precondition, wanted
from data_registry.governance.share_answer import OpenFile, Withheld

ROOT = Path(__file__).resolve().parents[2]
BIG = 48_000_000


class TestRanges:
    """RFC 9110, 14.1.2 with its examples for a file of 10000 bytes, and 14.2."""

    @pytest.mark.parametrize(
        ("field", "expected"),
        [
            ("bytes=0-499", Part(0, 499)),
            ("bytes=500-999", Part(500, 999)),
            ("bytes=-500", Part(9500, 9999)),
            ("bytes=9500-", Part(9500, 9999)),
            ("bytes=0-0", Part(0, 0)),
            ("bytes=9999-20000", Part(9999, 9999)),
            ("bytes=-20000", Part(0, 9999)),
            ("Bytes= 5-6 ,", Part(5, 6)),
            ("bytes=10000-", "outside"),
            ("bytes=10000-10001", "outside"),
            ("bytes=-0", "outside"),
            (None, "whole"),
            ("", "whole"),
            ("bytes=", "whole"),
            ("bytes=5-4", "whole"),
            ("bytes=a-b", "whole"),
            ("bytes=--5", "whole"),
            ("bytes=+1-2", "whole"),
            ("bytes=1-2-3", "whole"),
            ("bytes=\u0661-2", "whole"),
            ("lines=1-2", "whole"),
            ("bytes=0-0,-1", "whole"),
            ("bytes=" + "0-1," * 50_000 + "0-1", "whole"),
            ("bytes=" + "9" * 5000 + "-", "whole"),
        ],
    )
    def test_examples(self, field: str | None, expected: object) -> None:
        assert wanted(field, 10_000) == expected

    def test_an_empty_file_has_no_part(self) -> None:
        assert [wanted(f"bytes={r}", 0) for r in ("0-", "0-5", "-5")] == ["outside"] * 2 + ["whole"]

    def test_parts_lie_in_the_file(self) -> None:
        draw = random.Random(1)
        for _ in range(2000):
            size = draw.randrange(1, 20)
            first, last = draw.randrange(30), draw.choice([draw.randrange(30), ""])
            found = wanted(f"bytes={first}-{last}", size)
            content = bytes(range(size))
            if isinstance(found, Part):
                end = size if last == "" else int(last) + 1
                assert content[found.first : found.last + 1] == content[first:end] != b""
            else:
                inverted = last != "" and int(last) < first
                assert found == ("whole" if inverted else "outside")
                assert inverted or first >= size

    def test_conditions(self) -> None:
        tag, other = '"a"', '"b"'
        assert may_be_partial(None, tag)
        assert may_be_partial(tag, tag)
        for field in (other, f"W/{tag}", "a", "Thu, 26 Nov 2026 08:00:00 GMT", ""):
            assert not may_be_partial(field, tag)
        assert precondition(None, None, tag) == "go on"
        assert precondition(f"{other}, {tag}", None, tag) == "go on"
        assert precondition("*", other, tag) == "go on"
        for field in (other, f"W/{tag}", ""):
            assert precondition(field, tag, tag) == "failed"
        for field in (tag, f"W/{tag}", "*", f"{other} , {tag}"):
            assert precondition(None, field, tag) == "not modified"


class TestOpenFile:
    def test_a_file_that_changes_is_withheld(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"0123456789")
        file = OpenFile(path)
        assert file.read(3, 4) == b"3456"
        with path.open("ab") as more:
            more.write(b"x")
        with pytest.raises(Withheld):
            file.read(3, 4)
        file.close()
        path.write_bytes(b"0123456789")
        replaced = OpenFile(path)
        (tmp_path / "b").write_bytes(b"abcdefghij")
        (tmp_path / "b").replace(path)  # the open one stays what it was
        assert replaced.read(0, 10) == b"0123456789"
        new = OpenFile(path)
        assert new.identity != replaced.identity
        for one in (new, replaced):
            one.close()

    def test_links_and_folders_are_not_opened(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "a")
        (tmp_path / "a").write_bytes(b"")
        for name in ("link", ".", "none"):
            with pytest.raises(OSError, match=r"."):
                OpenFile(tmp_path / name)


class TestCounts:
    def test_add_up_and_survive(self, tmp_path: Path) -> None:
        assert fetched(tmp_path) == {}
        counts = Downloads(tmp_path)
        counts.began("n", "a")
        counts.ended("n", "a", 5, completed=False)
        counts.began("n", "a")
        counts.ended("n", "a", 7, completed=True)
        counts.began("n", "b")
        counts.began("m", "a")
        counts.close()
        again = Downloads(tmp_path)
        again.ended("n", "b", 1, completed=True)
        again.close()
        found = fetched(tmp_path)
        last = found["n"].last
        assert found["n"] == Fetched(2, 3, 2, 13, last)
        assert found["m"].completed == 0
        assert (tmp_path / "downloads.sqlite").stat().st_mode & 0o077 == 0
