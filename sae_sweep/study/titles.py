"""The title of every figure of the study's tables says what stands in for the study's model and text."""

import textwrap

from matplotlib.figure import Figure

from sae_sweep.report.style import INK
from sae_sweep.study.words import StudySetup

_CHARACTERS_AN_INCH = 15
"""At the size of the title."""


def title_with_setup(figure: Figure, title: str, setup: StudySetup) -> None:
    """The title, and below it the sweep in one sentence."""
    width = int(_CHARACTERS_AN_INCH * figure.get_size_inches()[0])
    figure.suptitle(f"{title}\n{textwrap.fill(setup.sentence(), width)}", fontsize=9.5, color=INK)
