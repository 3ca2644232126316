"""`tmi report`: contents of its pages, what they must not contain, and their behaviour in a browser."""

from __future__ import annotations

import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, files

import numpy as np
import pytest
from PIL import Image

from factories.browser import Browser, find_chromium
from factories.cases import MARKUP_CASE_ID
from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime.explanation.anatomy import read_anatomy
from tmi.runtime.explanation.overlay import Picture
from tmi.runtime.report.pages import _environment, evidence
from tmi.runtime.report.slices import page_slices
from tmi.runtime.serving.results import RESEARCH_USE
from tmi.toolkit.cases.case import Case
from tmi.toolkit.imaging.volume import Volume

MAX_BYTES = 5_000_000
PUBLISHED_BUNDLE = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"


class Addresses(HTMLParser):
    """Collects every address that a page loads, and its elements."""

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


def test_every_predicted_case_has_a_page(reported, pages):
    """Every predicted case has a page; a rejected one is listed in the index and stops no other."""
    _, outcome = reported
    assert outcome.code == 3, outcome.err
    assert set(pages) == {"index.html", "P1.html", f"{MARKUP_CASE_ID}.html"}
    assert "error: case P3: clinical.json has no object" in outcome.err
    assert "report of 2 case(s) in" in outcome.out
    assert "clinical-malformed: clinical.json has no object" in pages["index.html"].replace("&#34;", '"')


def test_pages_are_small_and_load_nothing(pages):
    """Every page is one file below 5 MB without external addresses."""
    for name, text in pages.items():
        assert len(text.encode()) < MAX_BYTES, name
        found = Addresses()
        found.feed(text)
        assert [a[:60] for a in found.loaded if not a.startswith(("data:", "#"))] == [], name
        assert "default-src 'none'" in text
        assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp|WebSocket", text), name


def test_page_shows_prediction_and_provenance(pages, tiny_bundle):
    """A page shows prediction, folds, parity checks, bundle, purpose and warnings."""
    from tmi.runtime.bundle.reader import inspect_bundle

    text = pages["P1.html"]
    bundle = inspect_bundle(tiny_bundle)
    for expected in (
        bundle.digest,
        RESEARCH_USE,
        "Standard deviation over the folds",
        "no calibration against outcomes",
        "(used here)",
    ):
        assert expected in text
    records = [r for r in bundle.manifest.parity if r.engine == "openvino"]
    assert f"{len(records)} of {len(records)}" in text
    assert "radiomics-clipped" in text
    assert "trained on synthetic cases, not on patients" in text


def test_evidence_table_shows_the_records_of_the_manifest(pages, tiny_bundle):
    """Each engine's row shows the logits record of the manifest, and the files' row the worst preprocessing record."""
    from tmi.runtime.bundle.reader import inspect_bundle

    records = inspect_bundle(tiny_bundle).manifest.parity
    table = re.search(r"<caption>Parity checks at the export.*?</table>", pages["P1.html"], re.S)
    assert table is not None
    rows = re.findall(r'<th scope="row">(.*?)</th><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>', table[0])
    texts = [[html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in rows]
    shown = {name.removesuffix(" (used here)"): (count, value) for name, count, value in texts}
    names = list(dict.fromkeys(r.engine for r in records))
    assert len(shown) == len(names) > 2
    for name in names:
        ran = [r for r in records if r.engine == name]
        check = "preprocessing" if name is None else "logits"
        quoted = [r for r in ran if r.check == check and r.graph == "pipeline"]
        worst = max(quoted, key=lambda r: (r.measured / r.bound if r.bound else 0.0, r.bound))
        count, value = shown["audit of the files" if name is None else name]
        assert count == f"{sum(r.passed for r in ran)} of {len(ran)}"
        assert value == f"{check}: {worst.measured:.1e}, allowed {worst.bound:.1e}"
        assert worst.bound > 0


def test_evidence_takes_the_worst_record_in_any_order():
    """The quoted record depends neither on its place in the manifest nor on records of other checks."""
    from tmi.runtime.bundle.reader import inspect_bundle

    manifest = inspect_bundle(PUBLISHED_BUNDLE).manifest
    logits = next(r for r in manifest.parity if (r.engine, r.check) == ("onnx", "logits"))
    failed = replace(logits, measured=0.25, bound=0.0625, passed=False)
    for parity in ((*manifest.parity, failed), (failed, *manifest.parity), (*reversed(manifest.parity), failed)):
        row = next(r for r in evidence(replace(manifest, parity=parity), "onnx") if r["engine"] == "onnx")
        assert (row["check"], row["measured"], row["bound"], row["used"]) == ("logits", 0.25, 0.0625, True)
        assert row["passed"] == row["checks"] - 1
    without = tuple(r for r in manifest.parity if r.check != "logits")
    assert {r["check"] for r in evidence(replace(manifest, parity=without), "onnx") if "audit" not in r["engine"]} == {
        None
    }


def test_alert_stands_above_the_prediction(pages):
    """A case with more than a tenth of its features outside the training range has the alert before its prediction."""
    for name, first in (("P1.html", "<main"), ("index.html", "<table")):
        count = int(
            re.findall(r"(\d+) of 1781 radiomic features lie outside the training range: unlike", pages[name])[0]
        )
        assert count > 178
        assert pages[name].index('role="alert"') < pages[name].index("unlike-training") < pages[name].index(first)


def test_pages_hold_no_patient_id_and_no_report_text(pages):
    """Pages contain neither the patient id nor the text of a report."""
    for name, text in pages.items():
        assert "patient-P" not in text, name
        assert "Secret words" not in text, name
    assert "Free-text report" in pages[f"{MARKUP_CASE_ID}.html"]


def test_markup_in_a_case_id_is_escaped(pages):
    """A case id that contains markup is shown as text."""
    for name in ("index.html", f"{MARKUP_CASE_ID}.html"):
        found = Addresses()
        found.feed(pages[name])
        assert not [named for _, named in found.elements if "onmouseover" in named]
        assert "&lt;b onmouseover=" in pages[name]


def test_unprintable_characters_of_a_page_are_escaped():
    """A value of a page holds no control, direction or surrogate character; markup of the template stays."""
    template = _environment().from_string("<b>{{ name }}</b>\n{{ number }} {{ data|tojson }}")
    template_text = template.render(name="P\u202e1\x1b\udcff", number=1.5, data={"a": "b"})
    assert template_text == '<b>P\\u202e1\\x1b\\udcff</b>\n1.5 {"a": "b"}'


def test_landmarks_labels_and_alternative_texts(pages):
    """Pages have the landmarks, labels and alternative texts that screen readers need; axe checks more where a browser
    is installed.
    """
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


def test_report_is_not_overwritten_without_force(reported, cohort, tiny_bundle):
    """An existing report is unchanged without `--force`."""
    before = (reported[0] / "index.html").read_bytes()
    outcome = tmi("report", cohort / "P1", "--bundle", tiny_bundle, "--out", reported[0])
    assert outcome.code == 2
    assert f"report {reported[0]} exists" in outcome.err
    assert (reported[0] / "index.html").read_bytes() == before


def test_slices_respect_the_budget(monkeypatch):
    """Slices stay within the budget, keep their proportions and include the centre.

    Noise is the worst case for the compression; the budget is reduced like the volume.
    """
    monkeypatch.setattr("tmi.runtime.report.slices.BUDGET_BYTES", budget := 1_500_000)
    noise = np.random.default_rng(0).integers(-160, 240, (20, 60, 60), dtype=np.int16)
    ct = Volume(array_DHW=noise, affine_xyz=np.diag([5.0, 5.0, 18.0, 1.0]))
    picture = Picture(ct=ct, map_DHW=np.random.default_rng(1).random(noise.shape, np.float32), liver_DHW=None, title="")
    planes = page_slices(picture, (7, 23, 45))
    size = sum(len(s["ct"]) + len(s["map"]) for plane in planes for s in plane.slices)
    assert size <= budget
    assert planes[0].width == 240  # 240 pixels for the longest side, 360 mm; finer levels exceed the budget
    assert [plane.slices[plane.start]["number"] for plane in planes] == [8, 24, 46]
    assert [plane.width / plane.height for plane in planes] == pytest.approx([1.0, 300 / 360, 300 / 360], rel=0.02)


def test_anatomy_without_mask_is_centred_on_the_body(cohort):
    """Without a liver mask the centre is the body's."""
    anatomy = read_anatomy(Case(folder=cohort / MARKUP_CASE_ID, case_id="P2"))
    assert anatomy.liver_DHW is None
    assert all(abs(c - n / 2) < 0.2 * n for c, n in zip(anatomy.centre_DHW, anatomy.ct.array_DHW.shape, strict=True))


# tests in a browser


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


def test_pages_open_without_errors_or_requests(page, reported):
    """Pages open from disk without console messages and without requests."""
    page.screenshot()
    page.open(reported[0] / "index.html")
    page.screenshot()
    assert page.faults == []


def test_planted_errors_are_detected(page):
    """A planted console error and a planted request are detected."""
    page.run("console.error('planted'); fetch('https://example.org').catch(() => 0)")
    assert any("planted" in fault for fault in page.faults)
    assert any("Content Security Policy" in fault or "request:" in fault for fault in page.faults)


def test_arrow_keys_change_the_slice(page):
    """The arrow keys change picture, label and alternative text."""
    page.run("document.getElementById('slice').focus()")
    before, label_before = pixels(page.screenshot()), page.run("document.getElementById('told').textContent")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    after, label_after = pixels(page.screenshot()), page.run("document.getElementById('told').textContent")
    assert label_before != label_after
    assert re.fullmatch(r"axial slice \d+ of 24", label_after)
    assert page.run("document.getElementById('ct').alt").startswith(
        f"CT, {label_after}; the patient's right is on the left"
    )
    box = page.run("(() => { const r = document.getElementById('stage').getBoundingClientRect(); "
                   "return [r.left, r.top, r.right, r.bottom].map(Math.round) })()")  # fmt: skip
    left, top, right, bottom = box
    changed = np.abs(before - after)[top:bottom, left:right].sum(axis=-1) > 24
    assert changed.mean() > 0.05
    assert page.faults == []


def test_each_plane_keeps_its_slice(page):
    """Switching planes changes the marks, and each plane keeps its slice."""
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


def test_map_can_be_hidden_with_the_keyboard(page):
    """The space key on the checkbox hides the map."""
    before = pixels(page.screenshot())
    page.run("document.getElementById('show-map').focus()")
    page.press(" ")
    assert page.run("document.getElementById('map').hidden") is True
    assert np.abs(before - pixels(page.screenshot())).sum() > 10_000


def test_index_sorts_and_filters(page, reported):
    """The index sorts by columns and filters by text and decision."""
    page.open(reported[0] / "index.html")
    cases = "[...document.querySelectorAll('#cases tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    by_p = "[...document.querySelectorAll('#cases th button')][2].click()"
    all_cases = page.run(cases)
    page.run(by_p)
    ascending = page.run(cases)
    page.run(by_p)
    descending = page.run(cases)
    assert ascending[-1] == descending[-1] == "P3"  # without a probability: last in both directions
    assert ascending[:2] == descending[1::-1]
    assert page.run("document.querySelectorAll('#cases th')[2].getAttribute('aria-sort')") == "descending"
    page.run(
        "(() => { const f = document.getElementById('find'); f.value = 'P1'; f.dispatchEvent(new Event('input')) })()"
    )
    assert page.run(cases) == ["P1"]
    assert page.run("document.getElementById('told').textContent") == f"1 of {len(all_cases)} cases shown"
    page.run("(() => { document.getElementById('find').value = ''; const d = document.getElementById('decision'); "
             "d.value = 'refused'; d.dispatchEvent(new Event('change')) })()")  # fmt: skip
    assert page.run(cases) == ["P3"]
    page.run("document.querySelector('#cases a').click()")
    assert page.faults == []


def test_axe_finds_no_serious_violation(page, reported):
    """Axe finds no serious or critical violation; a planted one is found."""
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
        assert found["passed"] > 15, "axe checked nothing"
        assert [f for f in found["faults"] if f[0] in ("serious", "critical")] == [], name
    page.run("document.querySelector('#find').labels[0].remove()")
    planted = page.run("axe.run().then(r => r.violations.filter(v => v.impact === 'critical').map(v => v.id))")
    assert "label" in planted


BROKEN_NUMBERS = """
(() => {
  const broken = [], number = /[+\\u2212\\u00b1-]?\\d[\\d.,:e^T+-]*(?:\\u00a0(?:%|[a-zA-Z0-9^/]+))?/g;
  const walker = document.createTreeWalker(document.querySelector('body'), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement;
    if (parent.closest('script, .hash') || parent.getClientRects().length === 0) continue;
    for (const match of node.data.matchAll(number)) {
      if (match.index && /\\w/.test(node.data[match.index - 1])) continue;  // part of a name
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const tops = [...range.getClientRects()].map((r) => Math.round(r.top));
      if (new Set(tops).size > 1) broken.push(match[0]);
    }
  }
  return broken;
})()
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_width_without_broken_numbers(page, reported, width):
    """At the width of a phone and of a desktop nothing is wider than the page, and no number or unit is split."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    try:
        for name in ("cases/P1.html", "index.html"):
            page.open(reported[0] / name)
            page.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
            assert page.run("document.documentElement.scrollWidth") == width, name
            assert page.run(BROKEN_NUMBERS) == [], name
            widths = page.run("[...document.querySelectorAll('.issues td')].map((cell) => cell.offsetWidth)")
            assert (min(widths, default=width) > 300) or width > 390, "a phone shows the cells of a warning stacked"
            assert widths or name == "index.html"
        page.run("document.querySelectorAll('#cases td').forEach((cell) => { cell.style = 'max-width: 1em; '"
                 " + 'white-space: normal; overflow-wrap: anywhere; display: block' })")  # fmt: skip
        assert page.run(BROKEN_NUMBERS) != []
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_warnings_stand_beside_the_result(page):
    """On a desktop the reasons for doubt stand to the right of the probability and begin at its height."""
    box = "(() => {{ const r = document.querySelector('{}').getBoundingClientRect(); return [r.left, r.top] }})()"
    result, trust = (page.run(box.format(name)) for name in (".probabilities", "aside"))
    assert trust[0] > result[0]
    assert trust[1] < result[1]


def test_print_is_a4_without_controls(page):
    """The print layout is A4 and hides the controls."""
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
