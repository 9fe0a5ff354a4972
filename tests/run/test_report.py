"""The report is one file, works offline and shows the mesh."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import imageio.v3 as iio
import numpy as np
import pytest
from headless_browser import headless_browser
from sample_run import PROMPT, SUMMARY, make_sample_run

from nerf_bridge.config import build_config
from nerf_bridge.paths import data_path
from nerf_bridge.run.curves import line_chart
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.report import inline_script, write_report


class Page(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        self._inside = self._inside[: -1 - self._inside[::-1].index(tag)]

    def handle_data(self, data):
        (self.scripts if "script" in self._inside else self.texts).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    run, config = make_sample_run(tmp_path_factory.mktemp("report") / "run")
    assert write_report(run, config, SUMMARY, run.list_previews()) == run.report
    return run


@pytest.fixture(scope="module")
def page(sample):
    return Page(sample.report.read_text(encoding="utf-8"))


def payload(uri: str, media_type: str) -> bytes:
    start = f"data:{media_type};base64,"
    assert uri.startswith(start)
    return base64.b64decode(uri.removeprefix(start), validate=True)


def test_everything_is_inside(sample, page):
    assert payload(page.of("model-viewer")[0]["src"], "model/gltf-binary") == sample.asset.read_bytes()
    assert payload(page.of("video")[0]["src"], "video/mp4") == sample.turntable.read_bytes()
    pictures = [payload(image["src"], "image/jpeg") for image in page.of("img")]
    assert [iio.imread(io.BytesIO(picture)).shape for picture in pictures] == [(96, 384, 3)] * 6
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "poster") if a.get(name)]
    assert all(address.startswith("data:") or address == "#" for address in addresses)
    assert not page.of("script")[0].get("src") and "model-viewer" in page.scripts[0]


def test_words_and_figures_are_there(page):
    text = re.sub(r"\s+", " ", " ".join(page.texts))
    assert page.texts.count(PROMPT) >= 2
    for words in ("seed 3", "step 150", "optimise", "90.2 s", "20,480", "Apache-2.0", "ab" * 32, "elevation_min_deg"):
        assert words in text, words
    strong = [a for tag, a in page.elements if tag == "tr" and a.get("class") == "strong"]
    assert len(strong) == 2  # seed and optim.lr_grid differ from their defaults
    assert len(page.of("svg")) == 4  # opacity, gradient norm, occupied cells, threshold


def test_the_script_cannot_end_its_element(page):
    assert len(page.of("script")) == 2
    assert not re.search(r"</?script", page.scripts[0], re.IGNORECASE)
    assert "sourceMappingURL" not in page.scripts[0]


def test_a_script_is_made_fit_for_its_element():
    assert inline_script('"</Script>" + "<script>"') == r'"\x3c/Script>" + "\x3cscript>"'


def test_a_run_that_did_little_has_a_report_too(tmp_path):
    run = RunDirectory(tmp_path)
    write_report(run, build_config({"prompt": "a chair", "guidance.method": "sds"}), {"mesh": {"curve": []}}, [])
    page = Page(run.report.read_text(encoding="utf-8"))
    assert not page.of("model-viewer") and not page.of("svg") and not page.of("script")


def test_of_many_pictures_a_dozen_is_shown(tmp_path, sample):
    previews = sample.list_previews()
    many = [(step, previews[0][1]) for step in range(100)]
    write_report(RunDirectory(tmp_path), build_config({"prompt": "a chair"}), {}, many)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    steps = [int(text.removeprefix("step ")) for text in page.texts if re.fullmatch(r"step \d+", text)]
    assert len(steps) == 12 and steps[0] == 0 and steps[-1] == 99


def test_a_full_disk_keeps_the_report_before(tmp_path, sample, monkeypatch):
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(sample.path, copy.path)
    before = copy.report.read_bytes()

    def full(path, text):
        raise OSError("No space left on device")

    monkeypatch.setattr("nerf_bridge.run.report.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(copy, build_config({"prompt": "a chair"}), {}, [])
    assert copy.report.read_bytes() == before


def polyline(svg: str) -> np.ndarray:
    points = re.search(r'<polyline points="([^"]+)"', svg)[1]
    return np.array([[float(number) for number in point.split(",")] for point in points.split()])


def test_curves_go_up_when_values_do():
    line = polyline(line_chart([(0, 1.0), (10, 2.0), (20, 1.5)], "opacity"))
    assert line[1, 1] < line[2, 1] < line[0, 1]  # y points down
    assert line[1, 0] - line[0, 0] == pytest.approx(line[2, 0] - line[1, 0])


def test_wide_ranges_are_logarithmic():
    line = polyline(line_chart([(0, 1.0), (1, 10.0), (2, 100.0)], "norm"))
    assert line[0, 1] - line[1, 1] == pytest.approx(line[1, 1] - line[2, 1], abs=0.11)


def test_x_may_grow_by_factors():
    svg = line_chart([(1, 0.1), (10, 0.2), (100, 0.3)], "iou", mark=10, log_x=True)
    line = polyline(svg)
    assert line[1, 0] - line[0, 0] == pytest.approx(line[2, 0] - line[1, 0], abs=0.11)
    assert f'class="mark" d="M{line[1, 0]}' in svg


def test_a_constant_and_a_mark():
    svg = line_chart([(0, 0.3), (10, 0.3)], "a < b", mark=5)
    assert svg.count("0.3</text>") == 1 and 'class="mark"' in svg and "a &lt; b" in svg
    assert 'class="mark"' not in line_chart([(0, 0.3), (10, 0.3)], "a", mark=10)
    assert "nan" not in line_chart([(3, 0.0)], "one point")


def test_the_viewer_is_the_one_its_note_names():
    import hashlib

    note = data_path("model-viewer/README.md").read_text()
    assert hashlib.sha256(data_path("model-viewer/model-viewer.min.js").read_bytes()).hexdigest() in note
    assert "Apache License" in data_path("model-viewer/LICENSE").read_text()


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_shows_the_mesh_without_network_and_errors(sample):
    with headless_browser() as browser:
        browser.open(sample.report.as_uri())
        assert browser.wait_for("return document.getElementById('viewer').loaded", 90)
        browser.run("document.getElementById('viewer').removeAttribute('auto-rotate')")
        box = "const b = document.getElementById('viewer').getBoundingClientRect();"
        left, top, right, bottom = browser.run(f"{box} return [b.left, b.top, b.right, b.bottom].map(Math.round)")
        for _ in range(20):
            picture = iio.imread(io.BytesIO(browser.screenshot()))[top:bottom, left:right, :3].astype(int)
            red = (picture[..., 0] > 120) & (picture[..., 0] > 2 * picture[..., 1])
            if red.mean() > 0.05:
                break
        assert 0.05 < red.mean() < 0.6, "the torus is not to be seen"
        film = "const v = document.querySelector('video'); return v.readyState >= 2 && v.videoWidth == 96"
        assert browser.wait_for(film, 30)
        assert [line for line in browser.console() if line.startswith("SEVERE")] == []
        assert browser.requested() == [sample.report.as_uri()]
