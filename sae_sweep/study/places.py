"""The study's figures of features, each with what `task=analyse figures=paper` drew in its place."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sae_sweep.config.pasted import override
from sae_sweep.report.markdown import inline
from sae_sweep.store import SweepFolder, write_text


class Place(NamedTuple):
    """A figure of the study."""

    heading: str
    """Its number in the study."""
    shows: str
    """What it shows, and how ours differs."""
    drawn: Sequence[str]
    """Names of our figures."""
    matched: Sequence[str] = ()
    """Names of figures of the comparison."""


PLACES = (
    Place(
        "Figure 7",
        "Mean non-zero activation by position, with the first position and without it; the study's is of a "
        "ReLU SAE that another author trained, at the last layer",
        ("mean_by_position_with_first", "mean_by_position"),
    ),
    Place("Figure 8", "The same without the first position, by layer", ("mean_by_position",)),
    Place("Figure 8 (text)", "Its periods: the study sees two, doubled in layers 1 to 3", ("spectrum",)),
    Place(
        "Figure 9",
        "The same with positional embeddings zeroed and shuffled: the coloured lines",
        ("mean_by_position",),
    ),
    Place(
        "Figure 10",
        "Deciles of each feature's activations; the study's labels are one decile too low",
        ("deciles", "separation"),
    ),
    Place(
        "Figure 11",
        "Cosines of the nearest to the fourth-nearest rows, by encoder and decoder, of features and of "
        "neurons, for another seed, another dataset, and both; drawn by every comparison",
        (),
        ("top_cosines",),
    ),
    Place("Figure 14", "Mean and deviation of the activations at each position", ("token_spread",)),
    Place("Figure 15", "Cross-entropy of the language model by position", ("language_model_loss",)),
    Place("Figure 16", "Cross-entropy with the SAE spliced in, and its own loss, by position", ("losses",)),
    Place(
        "Figure 17",
        "The SAE's loss with shuffled and zeroed positions; the study adds 0.004 L1 here, not in figure 16",
        ("losses_changed_positions",),
    ),
    Place(
        "Figure 18",
        "Decoder rows by UMAP, beside a random dictionary; the study counts layers from 1 here",
        ("decoder_umap", "decoder_umap_joint"),
    ),
    Place(
        "Beside them",
        "Features: mean and deviation, mean and density, densities",
        ("feature_spread", "feature_frequency", "density"),
    ),
)


def write_places(folder: SweepFolder) -> Path:
    """Write a page of the study's feature figures with ours in their places, or how to draw them.

    Raises:
        SaeSweepError: if it cannot be written.
    """
    sets = sorted({path.parent for path in folder.features.glob("*/mean_by_position.png")})
    lines = ["# The study's figures of features", ""]
    if not sets:
        command = f"python -m sae_sweep task=analyse figures=paper {override('sweep', folder.root.name)}"
        lines += ["They are not drawn yet:", "", f"    {command}", ""]
    for place in PLACES:
        lines += [f"## {place.heading}", "", f"{inline(place.shows)}.", ""]
        for one in sets:
            lines += _images(one, place.drawn)
        lines += _images(folder.matching, place.matched)
    page = folder.tables / "figures.md"
    write_text(page, "\n".join(lines).rstrip() + "\n")
    return page


def _images(drawn: Path, names: Sequence[str]) -> list[str]:
    """A line per figure that is in a folder below `analysis/`."""
    lines = []
    for name in names:
        file = drawn / f"{name}.png"
        if file.exists():
            path = quote("/".join(["..", *file.parts[file.parts.index("analysis") + 1 :]]))
            lines += [f"![{inline(drawn.name)}: {name.replace('_', ' ')}]({path})", ""]
    return lines
