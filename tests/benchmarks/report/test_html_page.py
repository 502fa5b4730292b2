import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from support.installed import program

from dinov2rt.benchmarks.peers.candidates import CANDIDATES
from dinov2rt.benchmarks.report.figures.marks import PLACES, Marks
from dinov2rt.benchmarks.report.figures.svg import PALETTE
from dinov2rt.benchmarks.report.html_page import to_html
from dinov2rt.benchmarks.report.index_page import to_index
from dinov2rt.benchmarks.report.tiles import tiles
from dinov2rt.benchmarks.report.titles import title
from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
_SCROLLBAR = 15
_LOADED_WITHIN_S = 60
VARIANTS = ("dinov2_vits14_reg", "dinov2_vitb14")
NAMES = ("dinov2rt-ort", "torch-eager", "torch-compile", "openvino <2026>", "torch-bf16")

Open = Callable[..., webdriver.Chrome]


@pytest.fixture(scope="module")
def page(benchmark_run: BenchmarkRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "run.html"
    file.write_text(to_html(benchmark_run), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "google-chrome")
    for flag in (*_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> Open:
    """The page in a window of a width, in light or dark."""

    def show(width: int = 1400, *, scheme: str = "light") -> webdriver.Chrome:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get("about:blank")
        for log in ("performance", "browser"):
            said(browser, log)  # forgets what a new tab did
        browser.get(page.as_uri())
        WebDriverWait(browser, _LOADED_WITHIN_S).until(lambda _: is_loaded(browser, page))
        return browser

    return show


def is_loaded(browser: webdriver.Chrome, page: Path) -> bool:
    """Whether `page` is the current document and complete.

    On a busy machine `get` can return while the document before is still the current one.
    """
    state = browser.execute_script("return [location.href, document.readyState]")
    return bool(state == [page.as_uri(), "complete"])


def said(browser: webdriver.Chrome, log: str) -> list[dict[str, Any]]:
    """What has come into a log since it was last asked."""
    entries: list[dict[str, Any]] = browser.get_log(log)  # type: ignore[no-untyped-call]
    return entries


def count(browser: webdriver.Chrome, selector: str) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, selector))


def test_nothing_is_asked_of_the_network_or_said_on_the_console(opened: Open) -> None:
    browser = opened()
    events = [json.loads(entry["message"])["message"] for entry in said(browser, "performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    assert {url.partition(":")[0] for url in urls} <= {"file", "data"}
    assert said(browser, "browser") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(width: int, opened: Open) -> None:
    browser = opened(width)
    root = browser.find_element(By.TAG_NAME, "html")
    assert browser.execute_script("return innerWidth") == width
    assert root.get_property("scrollWidth") == root.get_property("clientWidth")
    for tile in browser.find_elements(By.CSS_SELECTOR, ".tiles dd, .tiles dt, h1, .legend li"):
        assert tile.get_property("scrollWidth") <= tile.get_property("clientWidth"), tile.text
    for figure in browser.find_elements(By.CSS_SELECTOR, "figure svg"):
        assert 300 < figure.size["width"] <= width
        assert figure.size["height"] > 200


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_in_a_screenshot(width: int, opened: Open) -> None:
    browser = opened(width)
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as shot:
        assert shot.width == width
        ground = shot.convert("RGB").getpixel((1, 1))
        # The padding at both sides shows the page alone.
        for x in (1, 6, width - 7 - _SCROLLBAR, width - 2 - _SCROLLBAR):
            column = shot.convert("RGB").crop((x, 0, x + 1, shot.height))
            assert column.getcolors() == [(shot.height, ground)], x


def test_texts_of_plots_are_inside_of_them(opened: Open) -> None:
    outside = """
        const cut = [];
        for (const svg of document.querySelectorAll("figure svg")) {
            const frame = svg.getBoundingClientRect();
            for (const text of svg.querySelectorAll("text")) {
                const box = text.getBoundingClientRect();
                if (box.left < frame.left - 1 || box.right > frame.right + 1) {
                    cut.push(text.textContent);
                }
            }
        }
        return cut;
    """
    assert opened(1280).execute_script(outside) == []


def test_accuracy_stands_in_the_first_1280_pixels(opened: Open) -> None:
    browser = opened(1280)
    for name in ("relative L2", "smallest cosine"):
        for head in browser.find_elements(By.XPATH, f"//th[normalize-space()='{name}']"):
            assert head.rect["x"] + head.rect["width"] <= 1280


def test_every_plot_has_a_mark_for_every_result(opened: Open, benchmark_run: BenchmarkRun) -> None:
    browser, places = opened(), Marks.of(benchmark_run)
    assert count(browser, "figure > svg") == 4 * len(VARIANTS)
    for variant in VARIANTS:
        for name in NAMES:
            # What failed its accuracy has no mark.
            whole = 3 if (variant, name) == ("dinov2_vitb14", "torch-bf16") else 4
            place = places.place(name)
            for plot in ("roofline", "accuracy"):
                assert count(browser, f"#{plot}-{variant}-candidate-{place} use") == whole, name
            for plot in ("latency", "throughput"):  # two settings each: bars
                bars = [f"#{plot}-{variant}-candidate-{place}-{group}" for group in (0, 1)]
                assert [count(browser, bar) for bar in bars] == [1, 1], bars


def test_the_longest_bar_is_of_the_slowest(opened: Open, benchmark_run: BenchmarkRun) -> None:
    browser, places = opened(), Marks.of(benchmark_run)

    def width(name: str, group: int) -> float:
        bar = f"#latency-dinov2_vitb14-candidate-{places.place(name)}-{group}"
        return float(browser.find_element(By.CSS_SELECTOR, bar).rect["width"])

    for group in (0, 1):
        ratio = width("torch-eager", group) / width("torch-compile", group)
        assert ratio == pytest.approx(1.4 / 1.15, rel=0.1)
    assert width("torch-eager", 1) > 4 * width("torch-eager", 0)


def test_three_sizes_are_lines(benchmark_run: BenchmarkRun) -> None:
    cells = [Cell(VARIANTS[0], 1, side, side) for side in (98, 224, 518)]
    rows = [replace(row, cell=cell) for cell in cells for row in benchmark_run.rows[5:10]]
    html = to_html(replace(benchmark_run, rows=tuple(rows)))
    assert 'id="latency-dinov2_vits14_reg-candidate-' in html
    assert "image size in pixels" in html


def test_axes_are_labelled_with_units_and_ticks(opened: Open) -> None:
    browser = opened()

    def texts(plot: str) -> set[str]:
        found = browser.find_elements(By.CSS_SELECTOR, f"#{plot}-dinov2_vits14_reg text")
        return {each.text for each in found}

    assert texts("latency") >= {"median ms per call", "1 × 224×224", "1 × 518×518", "0"}
    assert texts("throughput") >= {"images per second", "1 × 224×224", "8 × 224×224", "0"}
    assert texts("roofline") >= {"8 × 518×518", "0 %", "100 %"}
    assert texts("accuracy") >= {"0", "1e-06", "1e-02", "100 %"}


def test_plots_have_titles_and_descriptions_for_screen_readers(opened: Open) -> None:
    for figure in opened().find_elements(By.CSS_SELECTOR, "figure svg"):
        assert figure.accessible_name.startswith("dinov2_vit")
        described = figure.get_attribute("aria-describedby")
        text = figure.find_element(By.ID, str(described)).get_attribute("textContent")
        assert "Candidates: dinov2rt-ort, torch-eager" in str(text)


def test_ids_are_unique_and_references_lead_somewhere(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_the_legend_names_every_candidate_in_the_color_of_the_plots(
    opened: Open, benchmark_run: BenchmarkRun
) -> None:
    browser, marks = opened(), Marks.of(benchmark_run)
    entries = browser.find_elements(By.CSS_SELECTOR, ".legend li")
    assert tuple(entry.text for entry in entries) == NAMES
    places = [marks.place(name) for name in NAMES]

    def fill(selector: str) -> Any:
        return browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property("fill")

    colors = [fill(f"#key-{i} #key-{i}-candidate-{i} use") for i in places]
    assert len(set(colors)) == len(NAMES)
    for plot in ("roofline", "accuracy"):
        group = f"#{plot}-dinov2_vitb14-candidate-"
        assert [fill(f"{group}{i} use") for i in places] == colors
    for plot in ("latency", "throughput"):
        group = f"#{plot}-dinov2_vitb14-candidate-"
        assert [fill(f"{group}{i}-0 path") for i in places] == colors


def luminance(color: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2; colors as `#rrggbb` or `rgb(r, g, b)`."""
    bright, dim = sorted((luminance(_rgb(color)) for color in (one, other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _rgb(color: str) -> tuple[float, ...]:
    if color.startswith("#"):
        return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(int(value) / 255 for value in re.findall(r"\d+", color)[:3])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_in_light_and_dark(scheme: str, opened: Open) -> None:
    browser = opened(scheme=scheme)

    def css(selector: str, name: str) -> str:
        return browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property(name)

    ground = css("figure", "background-color")
    assert (luminance(_rgb(ground)) < 0.1) == (scheme == "dark")
    assert contrast(css("#latency-dinov2_vitb14 text", "fill"), ground) > 7
    assert contrast(css(".quiet", "color"), css("body", "background-color")) > 4.5
    for pair in PALETTE:
        assert contrast(pair[scheme == "dark"], ground) >= 3, pair


def test_tables_hold_every_result_and_failures_have_no_time(opened: Open) -> None:
    browser = opened()
    tables = browser.find_elements(By.CSS_SELECTOR, "details table")
    assert len(tables) == 8
    last = tables[-1].find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(last) == len(NAMES)
    assert "failed accuracy" in last[-1].text
    assert "torch-bf16: not accurate: 7 values are NaN" in browser.page_source
    assert count(browser, "details tr.own") == 8


def test_warnings_and_the_summary_stand_at_the_top(opened: Open) -> None:
    text = opened().find_element(By.TAG_NAME, "main").text
    assert text.startswith("Read the figures with care:\nthe machine was busy")
    assert text.index("dinov2rt is the fastest in 7 of 8 cells") < text.index("Plots")


def test_foreign_text_is_never_markup(benchmark_run: BenchmarkRun) -> None:
    script = "<script>alert(1)</script>"
    environment = replace(benchmark_run.environment, cpu=script, warnings=(script,))
    facts = [replace(each, title=script) for each in benchmark_run.candidates]
    rows = [replace(row, failure=script) for row in benchmark_run.rows[:5]]
    html = to_html(
        replace(
            benchmark_run,
            environment=environment,
            command=script,
            candidates=tuple(facts),
            rows=tuple(rows),
        )
    )
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "openvino <2026>" not in html


@pytest.mark.parametrize(("device", "chip"), [("cpu", "Invented CPU | 8 GHz"), ("cuda", "A GPU")])
def test_the_heading_names_what_was_measured(
    device: str, chip: str, benchmark_run: BenchmarkRun
) -> None:
    run = replace(
        benchmark_run,
        environment=replace(benchmark_run.environment, gpu="A GPU"),
        settings=replace(benchmark_run.settings, device=device),
        rows=benchmark_run.rows[:5],
    )
    assert (
        f'<p class="quiet">{chip}, 2 threads,\ndevice {device}, machine test-machine.'
        in to_html(run)
    )


def test_one_cell_is_enough_for_a_page(benchmark_run: BenchmarkRun) -> None:
    html = to_html(replace(benchmark_run, rows=benchmark_run.rows[:5]))
    assert html.count("<figure>") == 3
    assert "Throughput by batch" not in html


def test_a_run_without_any_time_still_has_a_page(benchmark_run: BenchmarkRun) -> None:
    rows = [replace(row, latency=None, roofline=None, failure="x") for row in benchmark_run.rows]
    html = to_html(replace(benchmark_run, rows=tuple(rows)))
    assert "<figure>" not in html
    assert "39 results could not be measured for another reason." in html


def test_a_candidate_looks_the_same_on_every_page(benchmark_run: BenchmarkRun) -> None:
    def key(*names: str) -> str:
        facts = [replace(benchmark_run.candidates[0], candidate=name) for name in names]
        return Marks.of(replace(benchmark_run, candidates=tuple(facts))).key("openvino")

    assert key("openvino") == key("eager", "something new", "openvino")


def test_every_candidate_that_can_be_timed_has_a_place_of_its_own() -> None:
    assert {candidate.name for candidate in CANDIDATES} <= set(PLACES)
    assert len(set(PLACES)) == len(PLACES)


def test_more_candidates_than_colors_still_look_different(benchmark_run: BenchmarkRun) -> None:
    facts = [replace(benchmark_run.candidates[0], candidate=f"c{i}") for i in range(20)]
    marks = Marks.of(replace(benchmark_run, candidates=tuple(facts)))
    names = [*PLACES, *(f"c{i}" for i in range(20))]
    keys = {
        re.sub(r'candidate-\d+"|key-\d+|<title.*?title>|c\d+', "", marks.key(name))
        for name in names[-20:]
    }
    assert len(keys) == 20


def test_the_tiles_say_what_matters(benchmark_run: BenchmarkRun) -> None:
    figures = {tile.caption: tile.figure for tile in tiles(benchmark_run)}
    assert figures["the speed of eager PyTorch, with dinov2rt in float32"] == "1.40×"
    assert figures["the speed of the fastest float32 peer, with dinov2rt in float32"] == "1.01×"
    fastest = next(caption for caption in figures if caption.startswith("settings in which"))
    # torch-bf16 is faster than all others where it is accurate, in 7 of 8.
    assert (figures[fastest], "cosine of 0.999 or more" in fastest) == ("1 of 8", True)


def test_at_a_higher_accuracy_another_candidate_is_the_fastest(benchmark_run: BenchmarkRun) -> None:
    def inexact(row: Row) -> Row:
        if row.accuracy is None or row.candidate != "torch-bf16":
            return row
        return replace(row, accuracy=replace(row.accuracy, cls_cosine_min=0.99))

    run = replace(benchmark_run, rows=tuple(map(inexact, benchmark_run.rows)))
    assert tiles(run, 0.9)[0].figure == "1 of 8"
    assert tiles(run, 0.999)[0].figure == "7 of 8"


def test_titles_name_variant_machine_and_day(benchmark_run: BenchmarkRun) -> None:
    assert title(benchmark_run) == (
        "dinov2_vits14_reg, dinov2_vitb14 on Invented CPU | 8 GHz, 2026-01-02"
    )
    html = to_html(replace(benchmark_run, rows=benchmark_run.rows[:5]))
    assert f"<title>{title(benchmark_run)} · dinov2rt benchmark</title>" in html


def test_the_index_leads_to_every_run(benchmark_run: BenchmarkRun) -> None:
    runs = {Path(f"results/{name}/cpu.json"): benchmark_run for name in ("one", "two & three")}
    html = to_index(runs, Path("results"))
    assert re.findall(r'href="([^"]+html)"', html) == [
        "one/cpu.html",
        "two &amp; three/cpu.html",
    ]
    assert html.count("1.40×") == 2


def test_many_cells_make_the_plot_of_the_roofline_taller(benchmark_run: BenchmarkRun) -> None:
    rows = [
        replace(benchmark_run.rows[1], cell=Cell(VARIANTS[0], batch, 14 * size, 14))
        for batch in range(1, 5)
        for size in range(1, 5)
    ]
    html = to_html(replace(benchmark_run, rows=tuple(rows)))
    boxes = re.findall(r'<svg viewBox="0 0 [\d.]+ ([\d.]+)" role="img" id="roofline', html)
    assert float(boxes[0]) > 500
