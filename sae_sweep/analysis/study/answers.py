"""Does the dataset matter more than the seed? Asked in the study's way, and with its confounds taken out.

The study compares SAEs that share their initial dictionary (other datasets) with SAEs that do not (other
seeds), at unequal budgets, in one direction, dead features included. The controlled rows compare only runs
that differ in nothing else, at equal budgets, both directions averaged, live features only. Intervals are
95 % bootstraps over features; an SAE's resamples are shared by all pairs it is in.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import percentile_interval
from sae_sweep.analysis.study.cells import Cell, dataset_cells, seed_cells_at_baseline
from sae_sweep.analysis.study.runs import RunFinder, StudyRun
from sae_sweep.analysis.study.shares import Shares

DATASET_MORE = "the dataset moves more features"
SEED_MORE = "the seed moves more features"
UNDECIDED = "cannot be told"


@dataclass(frozen=True)
class PairGroup:
    """Pairs of runs that differ in one setting."""

    ratio: float | None
    """Mean share of matched features; None without pairs."""
    pairs: int
    undertrained: int
    """Pairs with a run that still matches its own initial dictionary above the limit."""
    missing: tuple[str, ...] = ()
    """SAEs or pairs that were wanted and are not there."""


@dataclass(frozen=True)
class Answer:
    """One way of asking."""

    way: str
    """`published`, `as in the study`, or `controlled`."""
    where: str
    """Which runs: a sweep's, and what they start from."""
    dataset: PairGroup
    seed: PairGroup
    difference: float | None
    """Ratio of the dataset pairs minus that of the seed pairs; below 0 where the dataset moves more."""
    low: float | None
    """Of the 95 % interval of the difference; None where the features are not known."""
    high: float | None

    @property
    def larger(self) -> str:
        """In words; an interval that holds 0 leaves it open."""
        if self.difference is None or self.difference == 0:
            return UNDECIDED
        if self.low is not None and self.high is not None and not (self.low > 0 or self.high < 0):
            return UNDECIDED
        return DATASET_MORE if self.difference < 0 else SEED_MORE

    @property
    def undertrained(self) -> bool:
        """Whether any pair of it is."""
        return self.dataset.undertrained + self.seed.undertrained > 0


@dataclass(frozen=True)
class _Measured:
    """A group, and its mean in every resample."""

    group: PairGroup
    draws: Float[Tensor, " resamples"] | None


def published_answer() -> Answer:
    """From the published Table 1: its dataset cells against the seed cells of the largest dictionary."""
    groups = []
    for cells in (dataset_cells(), seed_cells_at_baseline()):
        ratio = fmean(cell.published for cell in cells if cell.published is not None) / 100
        groups.append(_Measured(PairGroup(ratio, len(cells), 0), None))
    return _answer("published", "the study", *groups)


def answer_as_in_study(runs: Sequence[StudyRun], shares: Shares, where: str) -> Answer:
    """The same cells measured: one direction, all features, whatever the runs start from."""
    finder = RunFinder(runs)
    groups = [_of_cells(cells, finder, shares) for cells in (dataset_cells(), seed_cells_at_baseline())]
    return _answer("as in the study", where, *groups)


def answer_controlled(runs: Sequence[StudyRun], shares: Shares, where: str) -> Answer:
    """All pairs that differ only in the dataset against all that differ only in the seed."""
    groups = [_of_pairs(key, pairs_differing_in(key, runs), shares) for key in ("dataset", "seed")]
    return _answer("controlled", where, *groups)


def pairs_differing_in(key: str, runs: Sequence[StudyRun]) -> list[tuple[StudyRun, StudyRun]]:
    """Pairs that differ in `key` (`dataset` or `seed`) and in nothing else that moves the weights."""
    return [
        (a, b)
        for a, b in itertools.combinations(runs, 2)
        if getattr(a, key) != getattr(b, key) and _others(a, key) == _others(b, key)
    ]


def _others(run: StudyRun, key: str) -> tuple[object, ...]:
    names = ("architecture", "dictionary", "k", "l0_coefficient", "dataset", "layer", "seed")
    facts = tuple(getattr(run, name) for name in names if name != key)
    return (*facts, run.init_shared, run.tokens, run.rest)


def _of_cells(cells: Sequence[Cell], finder: RunFinder, shares: Shares) -> _Measured:
    found, missing = [], []
    for cell in cells:
        counted, sought_in = finder.find(cell.counted), finder.find(cell.sought_in)
        if counted is not None and sought_in is not None:
            found.append((counted, sought_in))
        else:
            missing.append(cell.key)
    ratios = [shares.share(*pair).ratio for pair in found]
    draws = [shares.draws(*pair) for pair in found]
    return _measured(found, ratios, draws, missing, shares)


def _of_pairs(key: str, pairs: Sequence[tuple[StudyRun, StudyRun]], shares: Shares) -> _Measured:
    found, ratios, draws = [], [], []
    missing = [] if pairs else [f"two runs that differ only in the {key}"]
    for a, b in pairs:
        drawn = (shares.draws(a, b, live=True) + shares.draws(b, a, live=True)) / 2
        if drawn.isnan().any():
            missing.append(f"live features of {a.name} or {b.name}")
            continue
        found.append((a, b))
        ratios.append((shares.live_ratio(a, b) + shares.live_ratio(b, a)) / 2)
        draws.append(drawn)
    return _measured(found, ratios, draws, missing, shares)


def _measured(
    pairs: Sequence[tuple[StudyRun, StudyRun]],
    ratios: Sequence[float],
    draws: Sequence[Tensor],
    missing: Sequence[str],
    shares: Shares,
) -> _Measured:
    group = PairGroup(
        ratio=fmean(ratios) if ratios else None,
        pairs=len(pairs),
        undertrained=sum(shares.undertrained(*pair) for pair in pairs),
        missing=tuple(missing),
    )
    return _Measured(group, torch.stack(list(draws)).mean(0) if draws else None)


def _answer(way: str, where: str, dataset: _Measured, seed: _Measured) -> Answer:
    difference = low = high = None
    if dataset.group.ratio is not None and seed.group.ratio is not None:
        difference = dataset.group.ratio - seed.group.ratio
    if dataset.draws is not None and seed.draws is not None:
        low, high = percentile_interval(dataset.draws - seed.draws)
    return Answer(way, where, dataset.group, seed.group, difference, low, high)


def dataset_or_seed(
    runs: Sequence[StudyRun],
    shares: Shares,
    *,
    sweep: str = "this sweep",
    paper: Sequence[StudyRun] = (),
    paper_shares: Shares | None = None,
    paper_sweep: str = "paper",
) -> tuple[Answer, ...]:
    """All ways of asking, one row each.

    Args:
        runs: of the sweep that is reported.
        shares: what matches them.
        sweep: its name.
        paper: runs of another sweep, one that follows the study to the letter, to set beside them.
        paper_shares: what matches those.
        paper_sweep: its name.
    """
    answers = [published_answer()]
    if paper:
        shares_of_paper = paper_shares or Shares(shares.config)
        answers.append(answer_as_in_study(paper, shares_of_paper, f"{paper_sweep}, {_starts(paper)}"))
    own = [run for run in runs if not run.init_shared]
    shared = [run for run in runs if run.init_shared]
    answers += [
        answer_as_in_study(kind, shares, f"{sweep}, {_starts(kind)}") for kind in (shared, own) if kind
    ]
    answers += [
        answer_controlled(own, shares, f"{sweep}, {OWN_STARTS}"),
        answer_controlled(shared, shares, f"{sweep}, {SHARED_STARTS}"),
    ]
    return tuple(answers)


SHARED_STARTS = "shared starts"
"""Runs of equal seed and size start from one dictionary (`init.shared=true`)."""
OWN_STARTS = "own starts"
"""Every run starts from its own dictionary (`init.shared=false`)."""


def _starts(runs: Sequence[StudyRun]) -> str:
    kinds = {run.init_shared for run in runs}
    if len(kinds) > 1:
        return "shared and own starts"
    return SHARED_STARTS if kinds == {True} else OWN_STARTS
