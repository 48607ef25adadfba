"""The page in headless Chromium: drop a file, compare, prompt, download; by mouse and keys."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import core_mri
from core_mri.physics.phantoms import phantom_volume
from tests.downstream.serving_client import Client, ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture
def page(networks: ServerProcess) -> Iterator[Page]:
    """The page; whatever goes wrong in it fails the test."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        problems: list[str] = []
        elsewhere: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith((networks.url, "blob:", "data:"))
            else elsewhere.append(r.url),
        )  # fmt: skip
        page.goto(networks.url)
        yield page
        assert not problems
        assert not elsewhere  # it works without a network
        browser.close()


def send(page: Page, name: str, content: bytes) -> None:
    from playwright.sync_api import expect

    page.set_input_files(
        "#file", {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )
    expect(page.locator("#detail-title")).to_have_text(name, timeout=30_000)
    expect(page.locator("#state")).to_have_text(re.compile("^(done|failed)"), timeout=120_000)


def pixels(page: Page, number: int) -> np.ndarray:
    """A canvas as the user sees it."""
    import io

    from PIL import Image

    shot = page.locator("#viewers canvas").nth(number).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L"), np.float32)


class TestRawData:
    def test_dropped_and_compared(self, page: Page, raw: bytes, tmp_path: Path) -> None:
        send(page, "<img src=x onerror=alert(1)>.h5", raw)
        assert page.inner_text("#state") == "done"
        page.wait_for_selector("#viewers canvas >> nth=3")
        titles = page.locator("#viewers figcaption").all_inner_texts()
        assert titles[0] == "zero-filled"
        assert titles[2:] == ["reference", "difference, 5 times as bright"]
        page.wait_for_timeout(2000)
        zero, reconstruction, reference = (pixels(page, n)[:300, :270] for n in range(3))
        assert reference.std() > 20  # something is drawn
        away = np.abs(zero - reference).mean(), np.abs(reconstruction - reference).mean()
        assert away[0] > 1.5 * away[1]
        scores = page.locator("#metrics tbody tr").all_inner_texts()
        assert [line.split()[0] for line in scores] == ["zero-filled", "wavelet"][::-1]
        assert page.locator("#detail-title img").count() == 0  # a name is text
        with page.expect_download() as started:
            page.click("text=dicom.zip")
        started.value.save_as(tmp_path / "dicom.zip")
        assert (tmp_path / "dicom.zip").read_bytes().startswith(b"PK")

    def test_a_scan_unlike_the_training_is_told(
        self, page: Page, like_scans: list[Path], unlike_scan: Path
    ) -> None:
        """In words above the pictures, and not for a scan like those of the training."""
        page.select_option("#source", "run")
        for path, unlike in ((unlike_scan, True), (like_scans[0], False)):
            send(page, path.name, path.read_bytes())
            assert page.inner_text("#state") == "done"
            page.wait_for_selector("#viewers canvas")
            assert page.is_visible("#likeness") is unlike
            assert ("unlike those" in page.inner_text("#likeness")) is unlike
            verdict = "unlike" if unlike else "like"
            assert f"Likeness to the training\t{verdict} (score" in page.inner_text("#facts")

    def test_keys_change_the_slice(self, page: Page, raw: bytes) -> None:
        send(page, "keys.h5", raw)
        page.wait_for_selector("#viewers canvas >> nth=3")
        page.wait_for_timeout(1500)
        before = pixels(page, 2)
        page.locator("#viewers canvas").nth(0).focus()
        page.keyboard.press("PageDown")
        page.wait_for_timeout(500)
        assert np.abs(pixels(page, 2) - before).mean() > 1  # the others follow

    def test_everything_by_keyboard(self, page: Page) -> None:
        reached = set()
        page.locator("#file").focus()
        for _ in range(12):
            reached.add(page.evaluate("() => document.activeElement.id"))
            page.keyboard.press("Tab")
        assert {"file", "source"} <= reached

    def test_a_picture_gets_plain_words(self, page: Page) -> None:
        send(page, "phone.jpg", b"\xff\xd8\xff\xe0" + bytes(5000))
        text = page.inner_text("#error")
        assert "a picture" in text
        assert "Send the scan itself" in text
        assert "Traceback" not in text


class TestScans:
    def test_a_click_gives_a_mask(
        self, page: Page, networks: ServerProcess, tmp_path: Path
    ) -> None:
        from playwright.sync_api import expect

        scan = phantom_volume("abdomen", 1, size=48, num_slices=5)[0]
        core_mri.write_volume(scan, tmp_path / "scan.nii.gz")
        send(page, "scan.nii.gz", (tmp_path / "scan.nii.gz").read_bytes())
        page.wait_for_selector("#viewers canvas")
        page.wait_for_timeout(1500)
        before = pixels(page, 0)
        page.locator("#viewers canvas").click()
        expect(page.locator("#prompt-state")).to_have_text(re.compile("^1 prompt,"), timeout=60_000)
        page.wait_for_timeout(1000)
        assert np.abs(pixels(page, 0) - before).mean() > 0.5  # the mask is seen
        page.check("input[value=box]")
        box = page.locator("#viewers canvas").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.6, steps=5)
        page.mouse.up()
        expect(page.locator("#prompt-state")).to_have_text(re.compile("^2 prompts"), timeout=60_000)
        found = Client(networks.url).ask("GET", "/v1/jobs").json()["jobs"][0]
        assert found["report"]["structures"][0]["voxels"] > 0
        page.click("#clear")
        page.locator("#add").focus()
        page.keyboard.press("Enter")  # the crosshair, without a mouse
