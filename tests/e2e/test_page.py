"""`report.html` of real small sweeps, in a browser without a network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch

from sae_sweep.analysis import MatchResult, match
from sae_sweep.report.page import contexts
from sae_sweep.report.page.build import write_page
from sae_sweep.report.page.sections import Section, Table, write_section
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.saes import load_sae
from sae_sweep.store import SweepFolder
from tests.browser import CHROMIUM, Browser, browser
from tests.conftest import Cli
from tests.report.page.reading import block, data

NAME = "<img src=x onerror=document.title='owned'>"
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    '"><b onmouseover="document.title=1">',
    "&lt;i&gt;",
    "\u202eevil\u2066",
    "\x00\x1b[31m\x7f",
    "\u200b",
    "\ud800".encode("utf-8", "replace").decode(),
    "${document.title='owned'}`",
    "\\u003cscript\\u003e",
    "\u05d0\u05d1",
)

PROBED = Table(
    "Of one section",
    ("setting", "text", "share", "number", "wide", ""),
    (("", "a", 0.875, 3, 16.26, ""), ("", "b", None, 4, 0.2, None)),
)
PERCENT = Table("By constants", ("at 1%",), ((1.43,), (20.0,)), digits=1)
FOLDED = Table("Contexts", ("context",), (("word" * 60,),), folded=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture
def sweep(cli: Cli, small: list[str], text_folder: Path, kept: Path, tmp_path: Path) -> Path:
    """A sweep of two analysed SAEs, on a corpus with a name and tokens that mean harm."""
    if not (kept / "x").exists():
        words = [*small, "tracking=none", f'dataset.name="{NAME}"', "sweep=x"]
        trained = cli(*words, "seed=42,49", "matching.measures=null")
        assert trained.code == 0, trained.err
        assert "  report    multirun/x/report.html\n" in trained.out
        analysed = cli("task=analyse", "sweep=x", "analysis.tokens=2048", "analysis.permutations=5")
        assert analysed.code == 0, analysed.err
        for path in (tmp_path / "multirun" / "x").glob("*/features/tokens.parquet"):
            _poison(path)
        shutil.copytree(tmp_path / "multirun" / "x", kept / "x")
    folder = tmp_path / "copy" / "x"
    shutil.copytree(kept / "x", folder)
    return folder


def _poison(path: Path) -> None:
    """Give the ids after the special one strings that mean harm, again and again."""
    table = read_parquet(path, None, "")
    strings = table["string"].to_pylist()
    for at in range(1, len(strings)):
        strings[at] = HOSTILE[at % len(HOSTILE)] + (str(at) if at % 3 else "")
    poisoned = pyarrow.table({"token": table["token"], "string": strings})
    owner = {"run_id": table.schema.metadata[b"run_id"].decode()}
    write_parquet(path, poisoned.replace_schema_metadata(owner))


def inert(tab: Browser) -> None:
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert tab.js("document.title") == "x"
    assert tab.js("document.querySelectorAll('main img[src=x], main b, main script, iframe').length") == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.slow(reason="two SAEs are trained and analysed, and a browser is started")
def test_the_page_in_a_browser_without_a_network(sweep: Path) -> None:
    write_section(sweep / "analysis" / "probe", Section(NAME, HOSTILE[0], (), (PROBED, PERCENT, FOLDED)))
    page = write_page(SweepFolder(sweep))
    assert page.problems == []
    assert page.details is None
    with browser() as tab:
        tab.open(page.path)
        sorts(tab)
        opens_a_pair(tab)
        finds_a_feature(tab)
        shows_a_section(tab)
        inert(tab)
        for width, dark in ((390, False), (390, True), (1200, True)):
            tab.open(page.path, width=width, dark=dark)
            tab.wait("document.querySelector('.chart svg') !== null")
            assert tab.js("document.documentElement.scrollWidth <= window.innerWidth"), (width, dark)
        inert(tab)


def shows_a_section(tab: Browser) -> None:
    """Numbers have the decimals of their column or table, empty columns are left out, long text is broken."""
    rows = "[...document.querySelectorAll('#section-0 table')].map((one) => [...one.rows].map((row) => "
    probed, percent, _ = tab.js(rows + "[...row.cells].map((cell) => cell.textContent)))")
    assert probed == [
        ["text", "share", "number", "wide"],
        ["a", "0.875", "3", "16.3"],
        ["b", "\u2013", "4", "0.2"],
    ]
    assert percent == [["at 1%"], ["1.4"], ["20.0"]]
    assert tab.js("document.querySelector('#section-0 h2').textContent") == NAME
    folded = "document.querySelector('#section-0 details')"
    assert tab.js(f"{folded}.open") is False
    assert tab.js(f"{folded}.querySelector('summary').textContent") == "Contexts"
    tab.js(f"{folded}.open = true")
    assert tab.js(f"(one => one.scrollWidth <= one.clientWidth)({folded}.querySelector('.scroll'))")


def sorts(tab: Browser) -> None:
    first = "document.querySelector('#runs tbody tr').innerText"
    tab.js("document.querySelectorAll('#runs thead button')[2].click()")
    descending = tab.js(first)
    tab.js("document.querySelectorAll('#runs thead button')[2].click()")
    assert tab.js(first) != descending
    assert tab.js("document.querySelectorAll('#runs th[aria-sort=ascending]').length") == 1
    assert tab.js("document.querySelectorAll('#runs th[aria-sort=descending]').length") == 0
    tab.js("document.querySelector('#runs input').value = '49'")
    tab.js("document.querySelector('#runs input').dispatchEvent(new Event('input'))")
    assert tab.js("document.querySelectorAll('#runs tbody tr').length") == 1


def opens_a_pair(tab: Browser) -> None:
    tab.js("document.querySelector('.grid td[data-share]').click()")
    tab.wait("document.querySelectorAll('#pair .chart').length === 2")
    tab.wait("[...document.querySelectorAll('#pair .chart')].every((one) => one.querySelector('svg'))")
    assert "seed 42" in tab.js("document.querySelector('#pair h3').textContent")
    assert tab.js("document.querySelectorAll('#pair li a').length") > 0
    tab.js("document.querySelector('.grid td[data-share]').focus()")
    event = "new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true})"
    tab.js(f"document.activeElement.dispatchEvent({event})")
    assert tab.js("document.activeElement.dataset.share !== undefined")


def finds_a_feature(tab: Browser) -> None:
    """Search for a token, open the first feature that fires on it, and see it beside its nearest."""
    tab.js("document.querySelector('#features').scrollIntoView()")
    tab.wait("document.querySelectorAll('#features tbody tr').length > 0")
    every = tab.js("document.querySelector('#features caption').textContent")
    search = "document.querySelector('#features input[type=search]')"
    tab.js(f"{search}.value = '</script>'")
    tab.js(f"{search}.dispatchEvent(new Event('input'))")
    tab.wait(f"document.querySelector('#features caption').textContent !== {json.dumps(every)}")
    rows = "[...document.querySelectorAll('#features tbody tr')].map((row) => row.textContent)"
    found = tab.js(rows)
    assert found
    assert all("</script>" in row for row in found)
    tab.js("document.querySelector('#features tbody a').click()")
    tab.wait("document.querySelectorAll('#feature .card h3').length === 2")
    assert tab.js("document.querySelectorAll('#feature .contexts mark').length") > 2
    text = tab.js(
        "document.querySelector('#feature').textContent + document.querySelector('#features').textContent"
    )
    assert "⟨U+202E⟩evil⟨U+2066⟩" in text
    assert "␀␛[31m␡" in text
    assert not {"\u202e", "\u2066", "\x1b", "\u200b"} & set(text)


@pytest.mark.slow(reason="two SAEs are trained and analysed")
def test_the_numbers_are_those_of_the_files(sweep: Path) -> None:
    page = write_page(SweepFolder(sweep)).path
    core = json.loads(data(page, "core"))
    words = json.loads(data(page, "words"))
    names = core["runs"]["names"]
    decoders = [load_sae(sweep / name / "sae").W_dec.detach() for name in names]
    pair = match(decoders[0], decoders[1])
    assert core["matching"]["ratios"] == [[None, pair.ratio_a_in_b], [pair.ratio_b_in_a, None]]
    listed(sweep, page, names, words, pair)
    pairs(page, pair)
    details(sweep, page, names, words, pair)


def listed(sweep: Path, page: Path, names: list[str], words: list[str], pair: MatchResult) -> None:
    """Every feature of both SAEs, in order."""
    header, found = block(page, "features")
    assert found["starts"].tolist() == [0, 512, 1024]
    assert found["numbers"].tolist() == [*range(512), *range(512)]
    top1, index = torch.cat([pair.top1_a, pair.top1_b]), torch.cat([pair.index_a, pair.index_b])
    np.testing.assert_allclose(found["cosine"] / 254, top1.clamp(0, 1), atol=0.5 / 254 + 1e-6)
    np.testing.assert_array_equal(found["match"] == 254, top1 > 0.7)
    assert found["nearest_feature"].tolist() == index.tolist()
    assert found["nearest_run"].tolist() == [1] * 512 + [0] * 512
    for run, name in enumerate(names):
        rows = slice(512 * run, 512 * run + 512)
        statistics, firing, strings = (
            read_parquet(sweep / name / "features" / f"{file}.parquet", None, "")
            for file in ("statistics", "firing", "tokens")
        )
        steps = {key: found[key][rows] / header["log_steps"] for key in ("density", "largest")}
        density = np.where(found["density"][rows] == header["never"], 0, 10 ** -steps["density"])
        np.testing.assert_allclose(density, statistics["density"], rtol=2e-4)
        largest = header["most"] * 10 ** -steps["largest"]
        fires = density > 0
        np.testing.assert_allclose(largest[fires], statistics["max_activation"].to_numpy()[fires], rtol=2e-4)
        position = firing["position_share"].to_numpy()
        known = ~np.isnan(position)
        np.testing.assert_array_equal(found["position"][rows] == 255, ~known)
        shown = found["position"][rows][known] / 254
        np.testing.assert_allclose(shown, position[known].clip(0, 1), atol=0.5 / 254 + 1e-6)
        text = strings["string"].to_pylist()
        tokens = found["tokens"].reshape(-1, header["width"])[rows]
        for shown_tokens, ids in zip(tokens, firing["tokens_by_mean"].to_pylist(), strict=True):
            assert [words[token] for token in shown_tokens if token] == [
                text[i] for i in ids[: header["width"]]
            ]


def pairs(page: Path, pair: MatchResult) -> None:
    header, found = block(page, "pairs")
    for row, (top1, index) in enumerate(((pair.top1_a, pair.index_a), (pair.top1_b, pair.index_b))):
        assert (found["a"][row], found["b"][row]) == (row, 1 - row)
        counts = found["histogram"][row * header["bins"] : (row + 1) * header["bins"]]
        assert counts.tolist() == np.histogram(top1.clamp(0, 1), header["bins"], (0, 1))[0].tolist()
        for name in ("shared", "alone"):
            rows = found[name].reshape(2, header["examples"], 2)[row].tolist()
            cosines = found[f"{name}_cosine"].reshape(2, header["examples"])[row]
            for (own, other), cosine in zip(rows, cosines, strict=True):
                if own == 2**32 - 1:
                    continue
                assert other == index[own]
                assert cosine == pytest.approx(top1[own].item())
                assert (cosine > 0.7) == (name == "shared")


def details(sweep: Path, page: Path, names: list[str], words: list[str], pair: MatchResult) -> None:
    """The contexts of each feature are those of the file, their strengths relative to the largest."""
    header, found = block(page, "details")
    assert header["others"] == [0, 1]
    other = found["other_feature"].reshape(-1, 2)
    assert (found["other_cosine"].reshape(-1, 2)[found["run"] == 0, 0] == 255).all()
    for run, nearest in ((0, pair.index_a), (1, pair.index_b)):
        rows = found["run"] == run
        assert other[rows, 1 - run].tolist() == nearest[found["feature"][rows]].tolist()
    tables = [
        read_parquet(sweep / name / "features/contexts.parquet", None, "").to_pylist() for name in names
    ]
    strings = [
        read_parquet(sweep / name / "features/tokens.parquet", None, "")["string"].to_pylist()
        for name in names
    ]
    context = word = 0
    for row, (run, feature) in enumerate(zip(found["run"], found["feature"], strict=True)):
        mine = [one for one in tables[run] if one["feature"] == feature]
        top = sorted((one for one in mine if one["kind"] == "top"), key=lambda one: one["rank"])[:8]
        each: dict[int, dict] = {}
        for one in (one for one in mine if one["kind"] == "sample"):
            if one["decile"] not in each or one["rank"] < each[one["decile"]]["rank"]:
                each[one["decile"]] = one
        expected = [*top, *(each[decile] for decile in sorted(each, reverse=True))]
        assert found["contexts"][row] == len(expected) > 0
        for one in expected:
            length = int(found["lengths"][context])
            assert [words[token] for token in found["words"][word : word + length]] == [
                strings[run][token] for token in one["tokens"]
            ]
            assert found["at"][context] == one["at"]
            assert found["decile"][context] == (0 if one["kind"] == "top" else one["decile"])
            assert found["activation"][context] == pytest.approx(one["activation"])
            strength = found["around"][word : word + length] / header["steps"] * found["largest"][row]
            np.testing.assert_allclose(strength, one["activations"], atol=found["largest"][row] / 250)
            context, word = context + 1, word + length
    assert (context, word) == (len(found["lengths"]), len(found["words"]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.slow(reason="two SAEs are trained and analysed, and a browser is started")
def test_what_the_page_does_not_hold_is_in_the_folder_beside_it(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "INSIDE", 40)
    monkeypatch.setattr(contexts, "CHUNK", 100)
    page = write_page(SweepFolder(sweep))
    assert page.details is not None
    assert len(list(page.details.iterdir())) == 2 * 6  # 512 features each
    inside = "insideDetails().then((found) => found.size)"
    shown = "document.querySelector('#feature .card').textContent"
    with browser() as tab:
        tab.open(page.path)
        assert 10 <= tab.js(inside) <= 40
        missing = tab.js(
            "features().then((list) => list.columns.numbers[[...list.runOf.keys()].find((at) =>"
            " list.runOf[at] === 1 && list.fires(at))])"
        )
        tab.js(f"location.hash = 'feature/1/{missing}'")
        tab.wait("document.querySelectorAll('#feature .contexts mark').length > 0")
        inert(tab)
        for script in page.details.iterdir():
            script.write_text(script.read_text().replace('saeSweepDetails("', 'saeSweepDetails("other'))
        tab.open(page.path)
        tab.js("insideDetails().then((found) => found.clear())")
        tab.js(f"location.hash = 'feature/1/{missing}'")
        tab.wait(
            f"document.querySelector('#feature .card') !== null && {shown}.includes('of another version')"
        )
        shutil.rmtree(page.details)
        tab.open(page.path)
        tab.js("insideDetails().then((found) => found.clear())")
        tab.js(f"location.hash = 'feature/1/{missing}'")
        tab.wait(
            f"document.querySelector('#feature .card') !== null && {shown}.includes('which is not there')"
        )
