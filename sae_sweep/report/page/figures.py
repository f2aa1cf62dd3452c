"""Figures on disk that the page shows as images: of the comparison, of families, and of what features do."""

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from sae_sweep.report.page.runs import Runs
from sae_sweep.store import regular, unreadable

_WIDEST = 1200
"""Pixels; a figure is made for paper, at twice what a screen shows."""
_QUALITY = 70
_MOST_BYTES = 2_500_000
"""Bytes of images inside the page."""
_REMEDY = "write it again with task=match or task=analyse"
_CAPTIONS = {
    "top_cosines": "Cosines of the nearest to the fourth-nearest rows of the decoder and the encoder",
    "firing_rate": "Share of features that have a match, by how often they fire",
    "truth": "How the SAEs match the true features of synthetic activations",
    "recovery": "Families beside the true features of synthetic activations",
    "presence": "Which family is in which SAE",
    "density": "How often features fire",
    "deciles": "Deciles of each feature's activations",
    "separation": "How far the activations of a feature fall into two groups",
    "position_features": "Share of features that follow the position",
    "mean_by_position": "Mean activation by position, without the first",
    "mean_by_position_with_first": "Mean activation by position",
    "spectrum": "Periods of the mean activation by position",
    "token_spread": "Mean and deviation of the activations at each position",
    "feature_spread": "Mean and deviation of each feature's activations",
    "feature_frequency": "How often and how strongly features fire",
    "language_model_loss": "Cross-entropy of the language model by position",
    "losses": "Cross-entropy with the SAE spliced in, and the SAE's own loss, by position",
    "losses_changed_positions": "The SAE's loss with shuffled and zeroed positions",
    "decoder_umap": "Decoder rows by UMAP",
    "decoder_umap_joint": "Decoder rows of several SAEs by one UMAP",
}
"""What a figure shows, by the name of its file; the figures have titles and legends of their own."""


def section(runs: Runs, problems: list[str]) -> list[dict[str, Any]]:
    """The figures in groups, each with its caption and its image; a damaged one is among `problems`.

    Once the images have `_MOST_BYTES`, the others are named with their place beside the page.
    """
    found, size = [], 0
    for title, files in _groups(runs):
        images = []
        for file in files:
            if size > _MOST_BYTES:
                images.append(
                    {"caption": _caption(file), "file": file.relative_to(runs.folder.root).as_posix()}
                )
                continue
            try:
                images.append(image(file))
                size += len(images[-1]["source"])
            except OSError as error:
                problems.append(str(unreadable(file, error, _REMEDY)))
        if images:
            found.append({"title": title, "images": images})
    return found


def image(file: Path, caption: str = "") -> dict[str, Any]:
    """A figure as an image for the screen, inside the page.

    Raises:
        OSError: if it cannot be read, or is no image.
    """
    try:
        with Image.open(regular(file)) as found:
            shown = found.convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow says of damage
        raise OSError(str(error)) from error
    if shown.width > _WIDEST:
        shown = shown.resize((_WIDEST, round(shown.height * _WIDEST / shown.width)), Image.Resampling.LANCZOS)
    content = BytesIO()
    shown.save(content, "WEBP", quality=_QUALITY, method=2)
    return {
        "caption": caption or _caption(file),
        "width": shown.width,
        "height": shown.height,
        "source": "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode(),
    }


def _caption(file: Path) -> str:
    return _CAPTIONS.get(file.stem, file.stem.replace("_", " "))


def _groups(runs: Runs) -> Iterator[tuple[str, list[Path]]]:
    folder = runs.folder
    names: tuple[str, ...] = ("firing_rate", "top_cosines", "truth")
    yield "Matching", [path for path in (folder.matching / f"{name}.png" for name in names) if path.exists()]
    for below in (folder.families, *sorted(path for path in folder.families.glob("*/"))):
        label = "Families" if below == folder.families else f"Families {below.name}"
        names = ("presence", "recovery")
        yield label, [path for path in (below / f"{name}.png" for name in names) if path.exists()]
    for drawn in sorted(path for path in folder.features.glob("*/")):
        yield f"What features do: {drawn.name}", sorted(drawn.glob("*.png"))
