"""The report's page, parsed: figures, comparisons, sound and timelines; nothing from data becomes markup."""

import asyncio
import base64
import functools
import html
import html.parser
import http.server
import io
import math
import pathlib
import re
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import soundfile

from tests.serve.chromium import chromium
from tml_jax.eval import report, shows
from tml_jax.eval.bootstrap import Estimate, Hidden
from tml_jax.eval.report import Case, Mark, Ours, Report, Row, Suite, Track

EVIL = """</title></svg><script>alert(1)</script><img src=x onerror='alert(1)'>"&'"""
VOID = {"meta", "line", "rect", "img", "link"}
RATE = 16_000
SHIPPED = pathlib.Path(__file__).parents[2] / "docs" / "report.html"


class Page(html.parser.HTMLParser):
    """Every element with its attributes, its text, and whether all were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def tone(seconds: float, channels: int = 2) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def a_case(label: str, text: str = "case-7") -> Case:
    return Case(
        label,
        text,
        6.0,
        Track([(0.5, 1.5)], [(0.5, text), (1.0, "now")]),
        Track([(2.0, 3.0), (4.0, 5.5)], [(2.0, text)]),
        [Mark(1.5, 2.1, f"answers {text}", True), Mark(4.0, 4.0, "silent", False), Mark(5.0, 6.0, "result", None)],
        "scored 1.0",
        tone(6.0),
    )


def a_report(text: str = "plain") -> Report:
    rows = [
        Row("latency " + text, Estimate(0.283, 0.25, 0.3111, 214), "s", at_most=0.3),
        Row("answered", Estimate(0.935, 0.9, 0.96, 200), at_least=0.95, note=text),
        Row("rare", Hidden(7), at_least=0.5),
        Row("one case", Estimate(0.5, math.nan, math.nan, 12), ""),
    ]
    suite = Suite("panel " + text, rows, [a_case("best", text), a_case("worst")], text)
    ours = {
        "turn_taking_latency": Ours(Estimate(0.283, 0.25, 0.31, 214), "s"),
        "charades_miou": Ours(Estimate(0.3, 0.2, 0.4, 50), "×100", comparable=True),
        "timespeak": Ours(Hidden(3)),
    }
    return Report("Report " + text, {"checkpoint": text, "device": "2 cores"}, [suite], ours)


def test_figures_with_intervals_bars_and_what_is_hidden():
    text = Page(report.render(a_report())).text
    assert "0.28 s [0.25, 0.31] of 214 at most 0.30 s: met" in text
    assert "93.5 % [90.0, 96.0] of 200 at least 95.0 %: missed" in text
    assert "hidden: 7 events at least 50.0 %" in text
    assert "0.50 no interval of 12" in text


def test_every_published_figure_is_marked_so_and_comparable_only_where_it_is():
    text = Page(report.render(a_report())).text
    assert "As published by TML-Interaction-Small" in text and "they were not measured here" in text
    for value in ("0.40 s", "77.8", "82.8 %", "68.0 %", "43.4 %", "64.7 %", "81.7 %", "35.4 %", "33.5", "32.4"):
        assert value in text
    assert "latency 0.40 s 0.28 s [0.25, 0.31] of 214 not comparable: that would need its recordings" in text
    assert "mIoU × 100 32.4 30.0 [20.0, 40.0] of 50 comparable" in text
    assert (
        "TimeSpeak, macro accuracy 64.7 % hidden: 3 events not comparable: that would need Thinking Machines' own"
        in text
    )
    assert "RepCount-A, off-by-one accuracy 35.4 % not measured" in text


def test_no_figure_is_comparable_with_closed_data():
    claim = {"cuespeak": Ours(Estimate(0.9, 0.8, 1.0, 50), comparable=True)}
    with pytest.raises(
        ValueError, match="“cuespeak” cannot be comparable: that would need Thinking Machines' own data"
    ):
        report.render(Report("a", {}, [], claim))
    with pytest.raises(ValueError, match="No published figure is known as “cuespeek”; known are turn_taking_latency, "):
        report.render(Report("a", {}, [], {"cuespeek": Ours(Hidden(0))}))


def test_nothing_from_data_becomes_markup():
    """The page of hostile text has the same elements as that of plain text, and shows the text as it is."""
    plain, hostile = (Page(report.render(a_report(text))) for text in ("plain", EVIL))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert {tag for tag, _ in hostile.elements}.isdisjoint({"script", "img", "iframe", "link", "object"})
    assert "".join(hostile.words).count(EVIL) == "".join(plain.words).count("plain") > 10


def test_the_page_needs_nothing_else():
    page = Page(report.render(a_report(EVIL)))
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; media-src data:"
    assert "url(" not in report.render(a_report()) and "@import" not in report.render(a_report())


@pytest.mark.parametrize("rate", [16_000, 22_050])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_is_in_the_page(rate, channels):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    head, _, body = report.audio_uri(np.stack([wave] * channels, axis=1).astype(np.float32), rate).partition(",")
    sound, heard_rate = soundfile.read(io.BytesIO(base64.b64decode(body)), always_2d=True)
    assert head == "data:audio/ogg;base64" and sound.shape[1] == channels
    assert len(sound) / heard_rate == pytest.approx(2.0, abs=0.03)
    spectrum = np.abs(np.fft.rfft(sound[: 2 * heard_rate, 0]))
    assert np.argmax(spectrum) * heard_rate / min(len(sound), 2 * heard_rate) == pytest.approx(440, abs=2)


def test_a_timeline_is_to_scale():
    drawn = ET.fromstring(report.timeline(a_case("best", EVIL)))
    tag = "{http://www.w3.org/2000/svg}"
    zero = float(drawn.attrib["width"]) - 6 * 90  # the case has 6 s
    boxes = [
        ((float(box.attrib["x"]) - zero) / 90, float(box.attrib["width"]) / 90) for box in drawn.iter(tag + "rect")
    ]
    wanted = [(0.5, 1.0), (2.0, 1.0), (4.0, 1.5), (1.5, 0.6), (4.0, 0.1), (5.0, 1.0)]
    assert np.array(boxes) == pytest.approx(np.array(wanted))
    colours = [box.get("fill") for box in drawn.iter(tag + "rect")]
    assert colours == [report.USER, report.MODEL, report.MODEL, report.MET, report.MISSED, report.UNTOLD]
    words = {((float(word.attrib["x"]) - zero) / 90, word.text) for word in drawn.iter(tag + "text")}
    assert {(0.5, EVIL), (1.0, "now"), (2.0, EVIL)} <= words
    assert {"user", "model", "expected", "0 s", "6 s"} <= {text for _, text in words}


def test_a_long_case_is_cut_and_says_so():
    case = Case("a", "long", 90.0, Track([(50, 70), (80, 81)], [(70.0, "late")]), Track(), [Mark(75, 76, "x", True)])
    drawn = report.timeline(case)
    assert "The first 60 s of 90 s." in drawn and "late" not in drawn
    assert re.findall(r'<rect x="(\S+)" y="\d+" width="(\S+)"', drawn) == [("4564.0", "900.0")]


def test_best_median_and_worst():
    scores = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.7, "e": 0.3}
    assert report.pick(scores, scores.__getitem__) == [("best", "b"), ("median", "c"), ("worst", "a")]
    assert report.pick(["a", "b"], scores.__getitem__) == [("best", "b"), ("worst", "a")]
    assert report.pick(["a"], scores.__getitem__) == [("best", "a")]
    assert report.pick([], scores.__getitem__) == []


def test_a_lone_surrogate_does_not_stop_it(tmp_path: pathlib.Path):
    report.write(a_report("\ud800"), tmp_path / "report.html")
    assert "Report ?" in (tmp_path / "report.html").read_text(encoding="utf-8")


LOOK = """async () => {
    const played = [];
    for (const player of document.querySelectorAll("audio")) {
        await player.play();
        await new Promise((done) => setTimeout(done, 500));
        played.push([player.duration, player.currentTime]);
        player.pause();
    }
    const drawn = [...document.querySelectorAll("svg")].map((svg) =>
        [svg.getBoundingClientRect().width, svg.querySelectorAll("rect").length]);
    const still = document.scripts.length + document.images.length == 0;
    return [played, drawn, still && document.documentElement.scrollWidth <= innerWidth];
}"""


def look(page_file: pathlib.Path, picture: pathlib.Path) -> tuple[list[list[float]], list[list[int]], bool]:
    """What Chromium has of a page: its players (seconds, place after half a second), its timelines (width, boxes)."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page_file.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def opened() -> tuple[list[list[float]], list[list[int]], bool]:
        flags = ["--autoplay-policy=no-user-gesture-required"]
        async with chromium(flags, viewport={"width": 1240, "height": 1010}) as page:
            await page.goto(f"http://127.0.0.1:{server.server_port}/{page_file.name}")
            found = await page.evaluate(LOOK)
            await page.screenshot(path=picture, full_page=True)
            return tuple(found)

    try:
        return asyncio.run(opened())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.browser
def test_in_a_browser(tmp_path: pathlib.Path):
    """Every player has its sound and plays it; every timeline is drawn; hostile text runs nothing."""
    report.write(a_report(EVIL), tmp_path / "report.html")
    played, drawn, still = look(tmp_path / "report.html", tmp_path / "report.png")
    assert [duration for duration, _ in played] == [pytest.approx(6.0, abs=0.1)] * 2
    assert all(position > 0.1 for _, position in played)
    assert drawn == [[604, 6], [604, 6]]
    assert still


@pytest.mark.browser
def test_the_shipped_report_in_a_browser(tmp_path: pathlib.Path):
    played, drawn, still = look(SHIPPED, tmp_path / "report.png")
    assert len(played) == len(drawn) >= 6 and still
    assert all(duration > 5 and position > 0.1 for duration, position in played)
    assert all(width > 400 and boxes > 2 for width, boxes in drawn)


def test_the_shipped_report_is_small_and_has_every_row():
    text = SHIPPED.read_text()
    assert len(text) < 3_000_000
    assert [row.name for row in shows.ROWS if f">{html.escape(row.name)}</th>" not in text] == []
