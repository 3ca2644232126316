"""`tmi report`: what its pages hold, what they must not, and how a browser takes them."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories.browser import Browser, find_chromium
from factories.cases import STRANGE
from factories.tmi_command import tmi
from tmi.runtime.explain.anatomy import read_anatomy
from tmi.runtime.explain.overlay import Picture
from tmi.runtime.report.slices import page_slices
from tmi.runtime.serving.results import RESEARCH_USE
from tmi.toolkit.cases.case import Case
from tmi.toolkit.imaging.volume import Volume

MOST_BYTES = 5_000_000


class Addresses(HTMLParser):
    """Every address that a page would load something from, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.elements.append((tag, named))
        if tag != "a":
            self.loaded += [named[k] for k in ("src", "href", "srcset", "action", "data", "poster") if named.get(k)]


@pytest.fixture(scope="module")
def pages(reported) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(reported[0].rglob("*.html"))}


def test_a_page_a_case_and_an_index_and_a_refused_case_stops_no_other(reported, pages):
    _, outcome = reported
    assert outcome.code == 3, outcome.err
    assert set(pages) == {"index.html", "P1.html", f"{STRANGE}.html"}
    assert "error: case P3: clinical.json has no object" in outcome.err
    assert "report of 2 case(s) in" in outcome.out
    assert "clinical-malformed: clinical.json has no object" in pages["index.html"].replace("&#34;", '"')


def test_every_page_is_one_file_below_5_mb_that_loads_nothing(pages):
    for name, text in pages.items():
        assert len(text.encode()) < MOST_BYTES, name
        found = Addresses()
        found.feed(text)
        assert [a[:60] for a in found.loaded if not a.startswith(("data:", "#"))] == [], name
        assert "default-src 'none'" in text
        assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp|WebSocket", text), name


def test_a_page_tells_answer_folds_evidence_bundle_and_purpose(pages, tiny_bundle):
    from tmi.runtime.bundle.reader import inspect_bundle

    text = pages["P1.html"]
    document = tmi("predict", Path(tiny_bundle).parent / "nowhere", "--bundle", tiny_bundle, "--json").document
    bundle = inspect_bundle(tiny_bundle)
    assert bundle.digest == document["bundle"]["digest"]
    for told in (
        bundle.digest,
        RESEARCH_USE,
        "Spread over the folds",
        "no calibration against outcomes",
        "(used here)",
    ):
        assert told in text
    gates = [r for r in bundle.manifest.parity if r.engine == "openvino"]
    assert f"{len(gates)} of {len(gates)}" in text
    assert "radiomics-clipped" in text
    assert "trained on synthetic cases, not on patients" in text


def test_no_patient_beyond_the_case_id_and_nothing_of_a_reports_text_is_in_a_page(pages):
    for name, text in pages.items():
        assert "patient-P" not in text, name
        assert "Secret words" not in text, name
    assert "Free-text report" in pages[f"{STRANGE}.html"]


def test_a_case_id_that_looks_like_markup_stays_text(pages):
    for name in ("index.html", f"{STRANGE}.html"):
        found = Addresses()
        found.feed(pages[name])
        assert not [named for _, named in found.elements if "onmouseover" in named]
        assert "&lt;b onmouseover=" in pages[name]


def test_landmarks_labels_and_alternative_texts_are_there(pages):
    """What a reader with a screen reader needs, without a browser; axe looks closer where there is one."""
    for name, text in pages.items():
        found = Addresses()
        found.feed(text)
        tags = [tag for tag, _ in found.elements]
        assert (tags.count("main"), tags.count("h1"), tags.count("title")) == (1, 1, 1), name
        assert {"header", "footer"} <= set(tags)
        assert ("html", {"lang": "en"}) in found.elements
        assert all("alt" in named for tag, named in found.elements if tag == "img")
        labelled = {named.get("for") for tag, named in found.elements if tag == "label"}
        loose = [
            named.get("id")
            for tag, named in found.elements
            if tag in ("input", "select") and named.get("type") not in ("radio", "checkbox")
        ]
        assert set(loose) <= labelled
        tables = re.findall(r"<table.*?</table>", text, re.S)
        assert all("<caption>" in table and 'scope="' in table for table in tables)


def test_a_report_is_not_written_over_without_force(reported, cohort, tiny_bundle):
    before = (reported[0] / "index.html").read_bytes()
    outcome = tmi("report", cohort / "P1", "--bundle", tiny_bundle, "--out", reported[0])
    assert outcome.code == 2
    assert f"report {reported[0]} exists" in outcome.err
    assert (reported[0] / "index.html").read_bytes() == before


def test_slices_keep_the_budget_their_proportions_and_the_centre(monkeypatch):
    """Noise is the worst that a picture's compression can meet; the budget here is cut like the volume."""
    monkeypatch.setattr("tmi.runtime.report.slices.BUDGET_BYTES", budget := 1_500_000)
    noise = np.random.default_rng(0).integers(-160, 240, (20, 60, 60), dtype=np.int16)
    ct = Volume(array_DHW=noise, affine_xyz=np.diag([5.0, 5.0, 18.0, 1.0]))
    picture = Picture(ct=ct, map_DHW=np.random.default_rng(1).random(noise.shape, np.float32), liver_DHW=None, title="")
    planes = page_slices(picture, (7, 23, 45))
    size = sum(len(s["ct"]) + len(s["map"]) for plane in planes for s in plane.slices)
    assert size <= budget
    assert planes[0].width == 240  # 240 pixels for the longest side, 360 mm; two finer levels did not fit
    assert [plane.slices[plane.start]["number"] for plane in planes] == [8, 24, 46]
    assert [plane.width / plane.height for plane in planes] == pytest.approx([1.0, 300 / 360, 300 / 360], rel=0.02)


def test_anatomy_without_a_mask_is_centred_on_the_body(cohort):
    anatomy = read_anatomy(Case(folder=cohort / STRANGE, case_id="P2"))
    assert anatomy.liver_DHW is None
    assert all(abs(c - n / 2) < 0.2 * n for c, n in zip(anatomy.centre_DHW, anatomy.ct.array_DHW.shape, strict=True))


# in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser, reported) -> Browser:
    browser.faults.clear()
    browser.open(reported[0] / "cases" / "P1.html")
    return browser


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_page_opens_from_disk_without_a_fault_or_a_request(page, reported):
    page.screenshot()
    page.open(reported[0] / "index.html")
    page.screenshot()
    assert page.faults == []


def test_a_fault_would_be_noticed(page):
    page.run("console.error('planted'); fetch('https://example.org').catch(() => 0)")
    assert any("planted" in fault for fault in page.faults)
    assert any("Content Security Policy" in fault or "request:" in fault for fault in page.faults)


def test_the_arrow_keys_move_the_picture(page):
    page.run("document.getElementById('slice').focus()")
    before, told = pixels(page.screenshot()), page.run("document.getElementById('told').textContent")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    after, now = pixels(page.screenshot()), page.run("document.getElementById('told').textContent")
    assert told != now
    assert re.fullmatch(r"axial slice \d+ of 24", now)
    assert page.run("document.getElementById('ct').alt").startswith(f"CT, {now}; the patient's right is on the left")
    box = page.run("(() => { const r = document.getElementById('stage').getBoundingClientRect(); "
                   "return [r.left, r.top, r.right, r.bottom].map(Math.round) })()")  # fmt: skip
    left, top, right, bottom = box
    changed = np.abs(before - after)[top:bottom, left:right].sum(axis=-1) > 24
    assert changed.mean() > 0.05
    assert page.faults == []


def test_planes_turn_and_each_keeps_its_slice(page):
    page.run("document.querySelector('input[value=sagittal]').click()")
    marks = "[...document.querySelectorAll('.mark')].map(m => m.textContent).join('')"
    assert page.run(marks) == "APSI"
    assert page.run("document.getElementById('told').textContent").startswith("sagittal slice ")
    page.run("document.getElementById('slice').focus()")
    page.press("End")
    last = page.run("document.getElementById('told').textContent")
    page.run("document.querySelector('input[value=coronal]').click()")
    assert page.run(marks) == "RLSI"
    page.run("document.querySelector('input[value=sagittal]').click()")
    assert page.run("document.getElementById('told').textContent") == last


def test_the_map_can_be_taken_off_with_the_keyboard(page):
    before = pixels(page.screenshot())
    page.run("document.getElementById('show-map').focus()")
    page.press(" ")
    assert page.run("document.getElementById('map').hidden") is True
    assert np.abs(before - pixels(page.screenshot())).sum() > 10_000


def test_the_index_sorts_and_filters(page, reported):
    page.open(reported[0] / "index.html")
    cases = "[...document.querySelectorAll('#cases tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    by_p = "[...document.querySelectorAll('#cases th button')][2].click()"
    listed = page.run(cases)
    page.run(by_p)
    up = page.run(cases)
    page.run(by_p)
    down = page.run(cases)
    assert up[-1] == down[-1] == "P3"  # no figure: last, whichever way
    assert up[:2] == down[1::-1]
    assert page.run("document.querySelectorAll('#cases th')[2].getAttribute('aria-sort')") == "descending"
    page.run(
        "(() => { const f = document.getElementById('find'); f.value = 'P1'; f.dispatchEvent(new Event('input')) })()"
    )
    assert page.run(cases) == ["P1"]
    assert page.run("document.getElementById('told').textContent") == f"1 of {len(listed)} cases shown"
    page.run("(() => { document.getElementById('find').value = ''; const d = document.getElementById('decision'); "
             "d.value = 'refused'; d.dispatchEvent(new Event('change')) })()")  # fmt: skip
    assert page.run(cases) == ["P3"]
    page.run("document.querySelector('#cases a').click()")
    assert page.faults == []


def test_axe_finds_no_serious_fault_of_accessibility(page, reported):
    try:
        scripts = files("axe-core-python") or []
    except PackageNotFoundError:
        pytest.skip("axe-core-python is not installed (extra dev)")
    axe = next(f for f in scripts if f.name == "axe.min.js").locate().read_text(encoding="utf-8")
    for name in ("cases/P1.html", "index.html"):
        page.open(reported[0] / name)
        page.run(axe)
        found = page.run("axe.run().then(r => ({passed: r.passes.length, "
                         "faults: r.violations.map(v => [v.impact, v.id, v.nodes[0].html])}))")  # fmt: skip
        assert found["passed"] > 15, "axe looked at nothing"
        assert [f for f in found["faults"] if f[0] in ("serious", "critical")] == [], name
    page.run("document.querySelector('#find').labels[0].remove()")
    planted = page.run("axe.run().then(r => r.violations.filter(v => v.impact === 'critical').map(v => v.id))")
    assert "label" in planted


def test_it_prints_to_a4_without_the_controls(page):
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    box = re.search(rb"/MediaBox ?\[ ?0 0 ([\d.]+) ([\d.]+) ?\]", printed)
    assert box is not None
    assert [float(v) for v in box.groups()] == pytest.approx([595, 842], abs=2)
    page.call("Emulation.setEmulatedMedia", media="print")
    hidden = page.run("getComputedStyle(document.querySelector('.viewer')).display")
    shown = page.run("getComputedStyle(document.querySelector('figure')).display")
    page.call("Emulation.setEmulatedMedia", media="")
    assert (hidden, shown) == ("none", "block")
