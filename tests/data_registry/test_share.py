"""Sharing: only what may go out, to who agreed, through links that end and cannot be made up."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from core_mri.__main__ import main
from core_mri.errors import ConfigError, CoreMRIError, DataError
from data_registry import Registry
from data_registry.cohorts import freeze
from data_registry.export import ExportConfig, export
from data_registry.governance import sharing as sharing_module
from data_registry.governance.agreements import accept, set_agreement
from data_registry.governance.audit_log import LOG, verify
from data_registry.governance.links import Link, parse, sign
from data_registry.governance.share_ledger import FILE, register
from data_registry.governance.sharing import Shared, Sharing
from data_registry.governance.uses import uses_of
from data_registry.governance.withdrawal import WithdrawConfig, withdraw
from tests.data_registry.test_release import clean, look  # noqa: F401  a fixture

NOW = 1_800_000_000.0
DAY = 86400
LINK_KEY = bytes(range(32))


@pytest.fixture
def unreviewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are about what comes after the review, which `TestReview` asks for really."""
    monkeypatch.setattr(sharing_module, "check_release", lambda *_: None)


class Desk:
    """A registry with a cohort, its export, and a user."""

    def __init__(self, path: Path, out: Path) -> None:
        self.registry = Registry.open(path)
        freeze(self.registry, "knees", "region = 'knee'")
        self.out = out
        export(ExportConfig(registry=path, out=out, format="nifti", cohort="knees"))
        self.sharing = Sharing(self.registry, LINK_KEY)
        self.user = register(path, "Ada Example", "ada@example.org")

    def agree(self, version: str = "CC0-1.0") -> None:
        accept(self.registry, self.user, "phantoms", version)

    def issue(self, **changes: object) -> Shared:
        options = {"now": NOW, "seconds": DAY, "reviewed": (), "project_key": b"", **changes}
        return self.sharing.issue("knees", self.user, self.out, **options)  # type: ignore[arg-type]

    def refused(self, link: str, now: float = NOW) -> str:
        with pytest.raises(CoreMRIError) as caught:
            self.sharing.check(link, now)
        return caught.value.code


@pytest.fixture
def desk(scans: Path, run_ingest, tmp_path: Path, unreviewed: None) -> Desk:
    run_ingest(tmp_path / "reg", scans)
    return Desk(tmp_path / "reg", tmp_path / "out")


class TestSignature:
    LINK = Link(path="a/b.nii.gz", user="U1", cohort="x", digest="d", expires=5, nonce="n")

    def test_comes_back(self) -> None:
        assert parse(sign(self.LINK, LINK_KEY, "https://example.org/share"), LINK_KEY) == self.LINK

    def test_another_base_is_the_same_link(self) -> None:
        text = sign(self.LINK, LINK_KEY, "https://a.example")
        assert parse(text.replace("a.example", "b.example"), LINK_KEY) == self.LINK

    @pytest.mark.parametrize("base", ["core-mri:share", "https://example.org/share"])
    def test_any_changed_character_of_the_query_is_found(self, base: str) -> None:
        text = sign(self.LINK, LINK_KEY, base)
        for place in range(text.index("?") + 1, len(text)):
            for new in ("0", "1", "z", "", "&"):
                changed = text[:place] + new + text[place + 1 :]
                if changed != text:
                    with pytest.raises(DataError, match="DATA-24"):
                        parse(changed, LINK_KEY)

    def test_values_moved_between_fields_are_found(self) -> None:
        text = sign(self.LINK, LINK_KEY, "x:y")
        moved = text.replace("nonce=n&path=a", "nonce=na&path=")
        with pytest.raises(DataError, match="DATA-24"):
            parse(moved, LINK_KEY)
        with pytest.raises(DataError, match="DATA-24"):
            parse(text + "&expires=99", LINK_KEY)

    @pytest.mark.parametrize(
        "text", ["", "x", "https://example.org/?a=b", "?" + "&" * 50, "http://["]
    )
    def test_no_link(self, text: str) -> None:
        with pytest.raises(DataError, match="DATA-24"):
            parse(text, LINK_KEY)

    def test_another_key(self) -> None:
        with pytest.raises(DataError, match="DATA-24"):
            parse(sign(self.LINK, bytes(32), "x:y"), LINK_KEY)


class TestCheck:
    def test_a_good_link(self, desk: Desk) -> None:
        desk.agree()
        shared = desk.issue()
        grant = desk.sharing.check(shared.link, NOW + DAY - 1)
        assert (grant.user, grant.cohort, grant.folder) == (desk.user, "knees", desk.out)
        image = next(desk.out.rglob("*.nii.gz")).relative_to(desk.out).as_posix()
        assert grant.file(image).is_file()
        for name in ("../reg/registry.json", "/etc/hosts", "export.json", "none", ""):
            with pytest.raises(DataError, match="DATA-24"):
                grant.file(name)

    def test_a_link_to_one_folder(self, desk: Desk) -> None:
        desk.agree()
        one, other = sorted(p.name for p in desk.out.glob("sub-*"))[:2]
        grant = desk.sharing.check(desk.issue(path=one).link, NOW)
        inside = next((desk.out / one).glob("*.nii.gz")).name
        assert grant.file(f"{one}/{inside}").is_file()
        outside = next((desk.out / other).glob("*.nii.gz")).name
        for name in (f"{other}/{outside}", f"{one}/../{other}/{outside}", "manifest.csv"):
            with pytest.raises(DataError, match="DATA-24"):
                grant.file(name)

    def test_links_of_files_that_lead_out_of_the_export(self, desk: Desk) -> None:
        desk.agree()
        (desk.out / "way").symlink_to(desk.registry.path / "registry.json")
        with pytest.raises(DataError, match="DATA-24"):
            desk.sharing.check(desk.issue().link, NOW).file("way")

    def test_expired(self, desk: Desk) -> None:
        desk.agree()
        assert desk.refused(desk.issue().link, NOW + DAY) == "DATA-23"

    def test_altered(self, desk: Desk) -> None:
        desk.agree()
        link = desk.issue().link
        later = link.replace(f"expires={int(NOW) + DAY}", f"expires={int(NOW) + 99 * DAY}")
        assert later != link
        assert desk.refused(later) == "DATA-24"

    def test_signed_but_never_issued(self, desk: Desk) -> None:
        link = Link(path="", user=desk.user, cohort="knees", digest="", expires=1 << 33, nonce="n")
        assert desk.refused(sign(link, LINK_KEY, "x:y")) == "DATA-24"

    @pytest.mark.parametrize("what", ["user", "nonce", "cohort"])
    def test_revoked(self, desk: Desk, what: str) -> None:
        desk.agree()
        first, second = desk.issue(), desk.issue()
        value = {"user": desk.user, "nonce": first.nonce, "cohort": "knees"}[what]
        assert desk.sharing.revoke(**{what: value}) == (1 if what == "nonce" else 2)
        assert desk.refused(first.link) == "DATA-23"
        if what == "nonce":
            assert desk.sharing.check(second.link, NOW).user == desk.user
        else:
            assert desk.refused(second.link) in ("DATA-23", "DATA-25")
        if what == "user":
            with pytest.raises(ConfigError, match="CONFIG-05"):
                desk.issue()

    def test_nothing_to_revoke(self, desk: Desk) -> None:
        for given in ({}, {"cohort": "knees"}, {"nonce": "x"}, {"user": "U0"}):
            with pytest.raises(ConfigError, match="CONFIG-05"):
                desk.sharing.revoke(**given)

    def test_a_patient_was_withdrawn_since(self, desk: Desk) -> None:
        desk.agree()
        shared = desk.issue()
        subject = desk.registry.volumes("region = 'knee'")[0].subject_id
        report = withdraw(desk.registry, WithdrawConfig(subject=subject))
        assert sorted(str(use["kind"]) for use in report.uses) == ["export", "share"]
        assert desk.refused(shared.link) == "DATA-22"
        with pytest.raises(DataError, match=r"DATA-22.*export the cohort again"):
            desk.issue()

    def test_the_export_was_changed(self, desk: Desk) -> None:
        desk.agree()
        link = desk.issue().link
        (desk.out / "manifest.csv").write_text("other")
        assert desk.refused(link) == "DATA-24"


class TestAgreements:
    def test_are_asked_for(self, desk: Desk) -> None:
        with pytest.raises(DataError, match=r"DATA-25.*phantoms \(version CC0-1.0\)"):
            desk.issue()
        with pytest.raises(DataError, match="DATA-25"):
            desk.agree("MIT")

    def test_a_new_version_ends_links_until_it_is_accepted(
        self, desk: Desk, tmp_path: Path
    ) -> None:
        desk.agree()
        shared = desk.issue()
        text = tmp_path / "dua.txt"
        text.write_text("Do not try to find out who they are.")
        set_agreement(desk.registry, "phantoms", "1.0", text)
        assert desk.refused(shared.link) == "DATA-25"
        with pytest.raises(DataError, match=r"DATA-25.*version 1.0, not CC0"):
            desk.agree()
        desk.agree("1.0")
        assert desk.sharing.check(shared.link, NOW).cohort == "knees"
        set_agreement(desk.registry, "phantoms", "1.1", text)  # the same text
        assert desk.refused(shared.link) == "DATA-25"
        text.write_text("Something else.")
        with pytest.raises(ConfigError, match=r"CONFIG-05.*1.1 .*another text"):
            set_agreement(desk.registry, "phantoms", "1.1", text)

    def test_of_a_source_that_does_not_exist(self, desk: Desk, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-05.*no source 'x'"):
            set_agreement(desk.registry, "x", "1", tmp_path / "none")


class TestPrivate:
    def test_names_stand_in_the_private_file_alone(self, desk: Desk) -> None:
        desk.agree()
        desk.issue()
        private = desk.registry.path / FILE
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
        assert "ada@example.org" in private.read_text()
        for path in desk.registry.path.rglob("*"):
            if path.is_file() and path != private:
                content = path.read_bytes()
                assert b"example.org" not in content
                assert b"Ada" not in content
        verbs = [entry.verb for entry in verify(desk.registry.path).entries]
        steps = ["share register", "share accept", "share issue", "share"]
        assert verbs == ["ingest", "freeze", "export", *steps]

    def test_the_audit_log_holds_no_link(self, desk: Desk) -> None:
        desk.agree()
        shared = desk.issue()
        log = (desk.registry.path / LOG).read_text()
        assert shared.nonce not in log
        assert (
            dict(p.split("=") for p in urlsplit(shared.link).query.split("&"))["signature"]
            not in log
        )

    def test_an_address_is_registered_once(self, desk: Desk) -> None:
        with pytest.raises(ConfigError, match=f"CONFIG-05.*{desk.user}"):
            register(desk.registry.path, "Ada", "ADA@example.org")
        for email in ("", "a", "@example.org", "a@b@c"):
            with pytest.raises(ConfigError, match="CONFIG-01"):
                register(desk.registry.path, "A", email)

    def test_a_torn_line_is_overwritten(self, desk: Desk) -> None:
        with (desk.registry.path / FILE).open("a") as file:
            file.write('{"event": "acce')
        desk.agree()
        assert desk.issue().nonce


class TestLicences:
    @pytest.mark.parametrize("licence", ["unknown", "LicenseRef-mine"])
    def test_each_source_that_forbids_it_is_named(
        self, desk: Desk, tmp_path: Path, run_ingest, save, licence: str
    ) -> None:
        save(tmp_path / "x" / "patient77" / "knee_T1.nii.gz", "knee", 77)
        source = {"name": "other", "licence": licence}
        run_ingest(desk.registry.path, tmp_path / "x", source=source)
        freeze(desk.registry, "both", "region = 'knee'")
        out = tmp_path / "both"
        desk.agree()
        config = ExportConfig(registry=desk.registry.path, out=out, format="nifti", cohort="both")
        if licence == "unknown":
            with pytest.raises(DataError, match=r"DATA-28.*other"):
                export(config)
            return
        export(config)
        options = {"now": NOW, "seconds": DAY, "reviewed": (), "project_key": b""}
        with pytest.raises(DataError, match=r"DATA-28.*other: LicenseRef-mine"):
            desk.sharing.issue("both", desk.user, out, **options)  # type: ignore[arg-type]

    def test_an_export_of_something_else(self, desk: Desk, tmp_path: Path) -> None:
        desk.agree()
        freeze(desk.registry, "brains", "region = 'brain'")
        for folder in (tmp_path, desk.out):
            with pytest.raises(ConfigError, match="CONFIG-03"):
                desk.sharing.issue("brains", desk.user, folder, now=NOW, seconds=DAY, reviewed=(),
                                   project_key=b"")  # fmt: skip


class SigningStore(LocalFileSystem):
    """A folder that signs, as S3 does."""

    protocol = "signing"

    def sign(self, path: str, expiration: int = 100, **_: object) -> str:
        return f"https://store.example{path}?expires={expiration}"


class TestObjectStore:
    @pytest.fixture(autouse=True)
    def store(self) -> None:
        fsspec.register_implementation("signing", SigningStore, clobber=True)

    def test_copies_are_signed_and_go_when_revoked(self, desk: Desk, tmp_path: Path) -> None:
        desk.agree()
        shared = desk.issue(store=f"signing://{tmp_path}/bucket")
        copies = tmp_path / "bucket" / shared.nonce
        exported = {p.relative_to(desk.out).as_posix() for p in desk.out.rglob("*") if p.is_file()}
        assert set(shared.urls) == exported - {"export.json"}
        for name, url in shared.urls.items():
            assert url == f"https://store.example{copies}/{name}?expires={DAY}"
            assert (copies / name).read_bytes() == (desk.out / name).read_bytes()
        desk.sharing.revoke(nonce=shared.nonce)
        assert not copies.exists()

    def test_a_store_that_cannot_sign_keeps_nothing(self, desk: Desk, tmp_path: Path) -> None:
        desk.agree()
        with pytest.raises(ConfigError, match=r"CONFIG-05.*cannot sign"):
            desk.issue(store=f"file://{tmp_path}/bucket")
        assert [p for p in (tmp_path / "bucket").rglob("*") if p.is_file()] == []

    def test_a_store_of_another_kind(self, desk: Desk) -> None:
        desk.agree()
        with pytest.raises(ConfigError, match="CONFIG-06"):
            desk.issue(store="nosuch://bucket")


class TestReview:
    """With the real gate: de-identified, ingested, exported, and looked at."""

    def test_without_review_nothing_is_shared(
        self, clean: Path, tmp_path: Path, key_file: Path, run_ingest: Callable[..., object],  # noqa: F811
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        run_ingest(tmp_path / "reg", clean)
        desk = Desk(tmp_path / "reg", tmp_path / "out")
        desk.agree()
        words = ["data", "share", "knees", "--registry", str(tmp_path / "reg"), "--user"]
        words += ["ada@example.org", "--export", str(desk.out), "--key-file", str(key_file)]
        assert main(words) == 1
        assert main([*words, "--reviewed", str(clean)]) == 1
        assert capsys.readouterr().err.count("DATA-19") == 2
        assert not uses_of(desk.registry.path, [])
        look(clean)
        assert main([*words, "--reviewed", str(clean), "--json"]) == 0
        shared = json.loads(capsys.readouterr().out)
        check = ["data", "share", "check", shared["link"], "--registry", str(tmp_path / "reg")]
        assert main(check) == 0
        assert "may have all files" in capsys.readouterr().out
        assert main([*check[:3], shared["link"][:-1], *check[4:]]) == 1
        assert "DATA-24" in capsys.readouterr().err
        assert main(["data", "share", "list", "--registry", str(tmp_path / "reg")]) == 0
        assert shared["nonce"] in capsys.readouterr().out
        revoke = ["data", "share", "revoke", "--registry", str(tmp_path / "reg")]
        assert main([*revoke, "--link", shared["nonce"]]) == 0
        assert main(check) == 1
        assert "DATA-23" in capsys.readouterr().err
