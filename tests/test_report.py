"""The report of a run that the real pipeline wrote: parsed, compared with what went in, opened in a browser."""

import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import vl_convert
from report_run import HOSTILE, MODELS, PROBLEMS, Page, finished_run, small_config, stage_functions

from nemo_vibethinker.config import MATH_DOMAINS
from nemo_vibethinker.pipeline import run_stages
from nemo_vibethinker.report import write_report
from nemo_vibethinker.report.series import MAX_POINTS
from nemo_vibethinker.report.vega import library
from nemo_vibethinker.run_folder import RunFolder, append_json_line, open_run
from nemo_vibethinker.spectrum.selection import ProbeTable, select_specialists

SECTIONS = ["headline", "lineage", "probe", "sft", "signal", "weights", "scores", "samples", "time", "data", "config"]
SECTIONS += ["provenance"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def read_page(path: Path) -> Page:
    return Page(path.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(run: RunFolder) -> Path:
    return write_report(run.path)


def test_every_section_is_there_and_in_the_contents(report: Path) -> None:
    page = read_page(report)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert [address for address in page.addresses if address.strip("#") in SECTIONS] == [
        f"#{name}" for name in SECTIONS
    ]
    assert len(page.ids) == len(set(page.ids)), "an id occurs twice"
    assert "All 9 stages have finished." in page.section_text["headline"]
    for title in ("Loss", "Reward and Pass@G", "Response length", "Truncated responses", "Entropy", "Mismatch KL"):
        assert title in page.text


def test_needs_nothing_from_outside(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    own = text.replace(library(), "")
    assert len(text) - len(own) > 500_000, "the page does not carry the charts' library"
    assert not re.search(r"https?:|//[a-z]|@import|@font-face|url\(", own)
    assert all(address == "data:," or address[1:] in page.ids for address in page.addresses)
    assert not page.tags & {"iframe", "object", "img"}
    assert len(text.encode()) < 3_000_000


def test_every_chart_is_compiled_by_the_library_without_a_warning(
    report: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = read_page(report)
    specs = json.loads(page.scripts[0])
    placed = re.findall(r'data-chart="([^"]+)"', report.read_text())
    assert sorted(specs) == sorted(placed)
    assert len(placed) == len(set(placed)) == 24
    for spec in specs.values():
        marks = vl_convert.vegalite_to_vega(spec)["marks"]
        assert marks
    assert "WARN" not in capfd.readouterr().err


def test_scores_and_gains_equal_the_inputs(run: RunFolder, report: Path) -> None:
    page = read_page(report)
    scores = json.loads((run.stage_folder("evaluate") / "scores.json").read_text())
    for model in MODELS:
        one, four = (row for row in page.rows if row[0] == model and "\N{EN DASH}" in row[1])
        for column, score in enumerate((score for score in scores if score["model"] == model), start=1):
            for k, cells in (("1", one), ("4", four)):
                value = score["pass_at"][k]
                shown = [float(number) for number in re.findall(r"[\d.]+", cells[column])]
                assert shown == [round(100 * value[key], 1) for key in ("mean", "low", "high")]
    path = ["sft_last", "fused", "mgpo.code"]
    maths = {s["model"]: s["pass_at"]["1"]["mean"] for s in scores if s["domain"] == "math"}
    row = page.row("math")
    assert [float(cell.split()[0]) for cell in row[1:4]] == [round(100 * maths[name], 1) for name in path]
    assert [float(cell) for cell in row[4:]] == [round(100 * (maths[b] - maths[a]), 1) for a, b in pairwise(path)]


def test_probe_map_equals_the_table_and_marks_the_specialists(run: RunFolder, report: Path) -> None:
    table = ProbeTable.from_json((run.stage_folder("probe") / "probe_table.json").read_text())
    k = run.config.probe.select_k
    page = read_page(report)
    chosen = select_specialists(table, k)
    for step in table.steps:
        row = page.row(str(step))
        for domain, cell in zip(table.domains, row[1:], strict=True):
            estimate = table.cells[domain][step][k]
            shown = [float(number) for number in re.findall(r"[\d.]+", cell)]
            assert shown == [round(100 * value, 1) for value in (estimate.mean, estimate.low, estimate.high)]
            assert ("\N{BLACK STAR}" in cell) == (chosen[domain] == step)
    assert "Fusion weights: algebra 0.25" in page.section_text["lineage"]
    cells = json.loads(page.scripts[0])["probe-map"]["datasets"]["rows0"]
    shown = {(cell["domain"], cell["step"]): cell for cell in cells if cell["k"] == k}
    for domain, step in chosen.items():
        assert shown[domain, step]["star"]
        assert shown[domain, step]["v"] == round(100 * table.cells[domain][step][k].mean, 1)


def test_cost_funnel_and_provenance_equal_the_inputs(run: RunFolder, report: Path) -> None:
    page = read_page(report)
    assert page.row("mgpo.math_16k")[1] == "20 of 20"
    row = ["mgpo.math_16k", "2", "1h 30m", "2.0000", "1.0000", "3.0000", "-", "-", "66.7", "15.8"]
    assert row in page.rows
    assert ["total", "10", "9h 30m", "18.0000", "1.0000", "19.0000", "-", "-", "94.7", "100.0"] in page.rows
    assert "94.7%" in page.section_text["headline"]
    assert "19.000" in page.section_text["headline"]
    assert ["sft", "1,204", "3", "0", "1,201", "99.8", "-", "-", "-"] in page.rows
    assert ["a-1", "h-9", "what is the area of a square"] in page.rows
    assert "held-out record: 1." in page.section_text["data"]
    for stage in run.config.stages:
        manifest = run.read_manifest(stage)
        assert manifest is not None
        assert all(artefact.sha256 in page.text for artefact in manifest.outputs.values())
    assert f"seed{run.config.seed}" in page.section_text["provenance"]
    assert "signal:" in page.section_text["config"]


def test_a_run_that_stopped_half_way_says_what_is_missing(tmp_path: Path) -> None:
    run = open_run(small_config(tmp_path))
    with pytest.raises(RuntimeError, match="machine is gone"):
        run_stages(run, stage_functions=stage_functions(random.Random(1), stop_in="mgpo.math_32k"))
    page = read_page(write_report(run.path))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "5 of 9 stages have finished; still to do: mgpo.math_32k, mgpo.code" in page.section_text["headline"]
    assert "No scores yet" in page.section_text["headline"]
    assert "The evaluate stage has not finished" in page.section_text["scores"]
    assert page.row("mgpo.math_32k")[1] == "10 of 20"


def test_a_run_that_has_not_begun_gives_a_page(tmp_path: Path) -> None:
    run = open_run(small_config(tmp_path))
    page = read_page(write_report(run.path))
    assert "0 of 9 stages have finished" in page.text
    for section, sentence in (("probe", "has not finished"), ("sft", "No SFT step"), ("signal", "No RL step")):
        assert sentence in page.section_text[section]
    assert "ledger is empty" in page.section_text["time"]


def test_a_recipe_without_spectrum_leaves_its_sections_out(tmp_path: Path) -> None:
    source = finished_run(tmp_path, recipe="spectrum", stages=["prepare", "sft", "probe", "fuse"])
    config = small_config(tmp_path, recipe="signal", stages=["mgpo.math_16k"])
    config.run.from_run = str(source.path)
    run = open_run(config)
    run_stages(run, stage_functions=stage_functions(random.Random(1)))
    page = read_page(write_report(run.path))
    assert [name for name in page.ids if name in SECTIONS] == [
        "headline",
        "lineage",
        "signal",
        "weights",
        "time",
        "config",
        "provenance",
    ]
    assert "earlier run" in page.scripts[0]


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    config.data.instruction = HOSTILE
    config.probe.domains = ["algebra", f'"{HOSTILE}$x$']
    run = open_run(config)
    run_stages(run, stage_functions=stage_functions(random.Random(1)))
    path = write_report(run.path)
    page = read_page(path)
    assert len(page.scripts) == 4, "hostile text made a script of its own, or ended one"
    for section in ("probe", "data", "config"):
        assert HOSTILE in page.section_text[section], section
    specs, samples = (json.loads(page.scripts[index]) for index in (0, 1))
    assert HOSTILE in json.dumps(specs["lineage-graph"])
    assert HOSTILE in samples["problems"][0]["prompt"]


def test_a_missing_or_infinite_metric_leaves_a_gap(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run = open_run(config)
    lines = [{"stage": "mgpo.math_16k", "step": step, "total": 20, "time": 0.0} for step in range(1, 6)]
    values = [0.1, math.nan, None, math.inf, 0.5]
    for line, value in zip(lines, values, strict=True):
        append_json_line(run.path / "run.jsonl", line | {"reward": value})
    page = read_page(write_report(run.path))
    assert "0.300 to 0.300" in page.row("mgpo.math_16k")[2]
    assert "nan" not in page.section_text["signal"].lower()


def test_same_run_gives_the_same_page(run: RunFolder, report: Path) -> None:
    before = re.sub("Written .* UTC", "", report.read_text())
    assert re.sub("Written .* UTC", "", write_report(run.path).read_text()) == before


def test_a_page_at_the_papers_scale_stays_under_3_mb(tmp_path: Path) -> None:
    """650 RL steps, 6,000 SFT steps, 20 checkpoints of 5 domains, 6,000 responses of 4,000 words to 500 problems."""
    config = small_config(tmp_path)
    config.sft.steps, config.sft.checkpoint_interval = 6000, 300
    config.probe.domains = [*MATH_DOMAINS, "code"]
    for name, steps in (("math_16k", 300), ("math_32k", 200), ("code", 150)):
        getattr(config.signal, name).steps = steps
    problems = [
        replace(PROBLEMS[number % 3], id=f"p-{number}", prompt=f"Problem {number}. " + "Find the sum. " * 30)
        for number in range(500)
    ]
    run = open_run(config)
    run_stages(run, stage_functions=stage_functions(random.Random(1), problems=problems, words=1500))
    path = write_report(run.path)
    assert 1_500_000 < path.stat().st_size < 3_000_000
    page = read_page(path)
    specs = json.loads(page.scripts[0])
    assert len(specs["probe-map"]["datasets"]["rows0"]) == 20 * 5 * len(config.probe.ks)
    assert max(map(len, specs["loss"]["datasets"].values())) <= MAX_POINTS
    shown = json.loads(page.scripts[1])["problems"]
    assert f"{len(shown)} of 500 problems" in page.section_text["samples"]
    assert len(shown) > 50
    assert "characters left out" in shown[0]["responses"][0][3]


def test_refuses_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)


def browse(report: Path, profile: Path, *flags: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """Open the page in a headless browser, which has to say nothing on its console."""
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=20000"
    command = [str(CHROMIUM), *quiet.split(), f"--user-data-dir={profile}", *flags, f"file://{report}{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_draws_every_chart_and_the_explorer_filters(report: Path, tmp_path: Path) -> None:
    shown = browse(report, tmp_path, "--dump-dom").stdout
    assert 'data-charts="drawn"' in shown
    places = shown.split("data-chart=")[1:]
    assert len(places) == len(json.loads(read_page(report).scripts[0]))
    assert all("<svg" in place for place in places)
    assert "12 of 12 problems" in shown

    filters = "#samples?q=p-6+problem&domain=algebra&model=fused&verdict=wrong"
    shown = browse(report, tmp_path, "--dump-dom", address=filters).stdout
    assert re.search(r"1 of 12 problems, \d+ of \d+ responses match", shown)
    assert shown.count('<details class="problem">') == 1
    assert "algebra, p-6" in shown
    shown = browse(report, tmp_path, "--dump-dom", address="#samples?q=nowhere").stdout
    assert re.search(r"0 of 12 problems, 0 of \d+ responses match", shown)


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("flags", [[], ["--blink-settings=preferredColorScheme=0"]], ids=["light", "dark"])
def test_a_browser_shows_it_in_light_and_dark(report: Path, tmp_path: Path, flags: list[str]) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    browse(report, tmp_path / "profile", "--window-size=1280,3000", f"--screenshot={picture}", *flags)
    image = Image.open(picture).convert("RGB")
    assert image.size == (1280, 3000)
    colours = image.getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 500, "the page is blank"
    background = max(colours)[1]
    assert isinstance(background, tuple)
    assert (min(background) > 200) == (not flags)
