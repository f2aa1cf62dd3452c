"""The answer of a sweep: which key moves the feature set most, on disk and in one sentence."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_sweep.analysis import SEVERAL, Comparison, KeyContrast, KeySummary
from sae_sweep.config import ConfigError, build
from sae_sweep.report.formatting import listed
from sae_sweep.store import read_record, unreadable, write_record

_REMEDY = "compare the SAEs again with task=match"


@dataclass(frozen=True)
class Answer:
    """What a comparison found about the keys of a sweep."""

    names: tuple[str, ...]
    """The SAEs that were compared."""
    threshold: float
    """Cosine above which two features match."""
    undertrained_above: float
    """Share of features that match the own start, above which nothing is concluded from an SAE."""
    init_matches: tuple[float, ...]
    """That share for each SAE."""
    summaries: tuple[KeySummary, ...]
    """One per key; the key that moves features most comes first."""
    contrasts: tuple[KeyContrast, ...]

    @property
    def trained(self) -> list[KeySummary]:
        """Summaries of single keys from which a conclusion can be drawn."""
        return [one for one in self.summaries if one.key != SEVERAL and one.trained]

    @property
    def sentence(self) -> str:
        """What moves the feature set most, with 95 % intervals; or why that cannot be told."""
        lost = [one for one in self.summaries if one.key != SEVERAL and not one.trained]
        if not self.trained:
            return self._nothing(lost)
        keys = [one.key for one in lost]
        return self._found() + (f" Nothing is concluded about {listed(keys)}: {_why(lost)}." if lost else "")

    def _found(self) -> str:
        first, *others = self.trained
        shares = f"{_found_again(first)} of the features are found again when only the {first.key} differs"
        if not others:
            return shares + "."
        shares += ", " + listed([f"{_found_again(one)} when only the {one.key} does" for one in others])
        apart = {(one.key, one.other) for one in self.contrasts if one.low > 0}
        tied = [one.key for one in others if (one.key, first.key) not in apart]
        if tied:
            return f"The keys {listed([first.key, *tied])} cannot be told apart: {shares}."
        return f"The {first.key} moves the feature set most: {shares}."

    def _nothing(self, lost: Sequence[KeySummary]) -> str:
        if lost:
            return (
                f"Nothing can be concluded about {listed([one.key for one in lost])}: the runs are "
                f"{_why(lost)}, and may match only because of what they started from."
                + " Raise tokens or optimizer.lr."
                * is_undertrained(lost)
            )
        if self.summaries:
            return "No key's effect can be told: any two of the SAEs differ in more than one key."
        return "Nothing can be told: no two finished SAEs of this sweep can be compared."


def is_undertrained(summaries: Sequence[KeySummary]) -> bool:
    """Whether pairs are left out because of runs that still match a drawn dictionary."""
    return any(one.undertrained > one.inherited for one in summaries)


def near_start(summaries: Sequence[KeySummary]) -> str:
    """What the runs of the pairs that are left out are, with the article."""
    why = _why(summaries)
    return f"{'a' if why.startswith('f') else 'an'} {why}"


def _why(summaries: Sequence[KeySummary]) -> str:
    inherited = any(one.inherited for one in summaries)
    words = ["undertrained"] * is_undertrained(summaries) + ["fine-tuned"] * inherited
    return " or ".join(words)


def answer(comparison: Comparison) -> Answer:
    """The part of a comparison that says what moves the features."""
    return Answer(
        names=comparison.names,
        threshold=comparison.threshold,
        undertrained_above=comparison.undertrained_above,
        init_matches=comparison.init_matches,
        summaries=comparison.summaries,
        contrasts=comparison.contrasts,
    )


def write_answer(path: Path, found: Answer) -> Path:
    """Write an answer as JSON.

    Raises:
        SaeSweepError: if the file cannot be written; it is not left incomplete.
    """
    write_record(path, dataclasses.asdict(found))
    return path


def read_answer(path: Path) -> Answer:
    """Read what `write_answer` wrote.

    Raises:
        SaeSweepError: one line with the file and the remedy, if it is missing or damaged.
    """
    record = read_record(path, _REMEDY)
    try:
        found: Answer = build(Answer, record)
    except ConfigError as error:
        raise unreadable(path, error, _REMEDY) from error
    return found


def _found_again(one: KeySummary) -> str:
    return f"{one.ratio:.1%} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
