"""The page of the study's feature figures."""

from sae_sweep.config.pasted import override
from sae_sweep.store import SweepFolder
from sae_sweep.study.places import PLACES, write_places


def test_without_figures_it_says_how_to_draw_them(tmp_path):
    page = write_places(SweepFolder(tmp_path / "a sweep")).read_text()
    assert f"    python -m sae_sweep task=analyse figures=paper {override('sweep', 'a sweep')}\n" in page
    assert page.count("\n## ") == len(PLACES)
    assert "## Figure 10\n\nDeciles" in page
    assert "## Beside them\n" in page
    assert "![" not in page


def test_figures_that_are_there_stand_in_their_places(tmp_path):
    folder = SweepFolder(tmp_path)
    drawn = folder.features / "gpt2 (12)"
    drawn.mkdir(parents=True)
    for name in ("mean_by_position", "deciles"):
        (drawn / f"{name}.png").write_bytes(b"")
    page = write_places(folder)
    sections = dict(part.split("\n", 1) for part in page.read_text().split("## ")[1:])
    image = "](../features/gpt2%20%2812%29/deciles.png)"
    assert image in sections["Figure 10"]
    assert image not in sections["Figure 18"]
    assert "mean_by_position.png" in sections["Figure 9"]
    assert "not drawn yet" not in page.read_text()
    assert (page.parent / "../features/gpt2 (12)/deciles.png").resolve().exists()
