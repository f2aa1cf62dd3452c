"""Does the dataset matter more than the seed? Asked in the study's way, and with its confounds taken out.

The study compares SAEs that share their initial dictionary (other datasets) with SAEs that do not (other
seeds), at unequal budgets, in one direction, dead features included. The controlled rows compare only runs
that differ in nothing else, at equal budgets, both directions averaged, live features only; and only in
settings (size, sparsity, architecture, layer, ...) that have both kinds of pair, each setting with equal
weight, so that a level that a setting has in both kinds cancels. Intervals are 95 % bootstraps over features;
an SAE's resamples are shared by all pairs it is in.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import percentile_interval
from sae_sweep.study.cells import Cell, dataset_cells, seed_cells_at_baseline
from sae_sweep.study.runs import RunFinder, StudyRun, differing
from sae_sweep.study.shares import Shares

DATASET_MORE = "the dataset moves more features"
SEED_MORE = "the seed moves more features"
UNDECIDED = "cannot be told"
_ASKED = ("dataset", "seed")


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
    settings: tuple[str, ...] = ()
    """Of the controlled rows: the settings that have both kinds of pair; they have equal weight."""
    settings_left_out: int = 0
    """Of the controlled rows: settings that have one kind of pair only."""

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
    first: StudyRun | None = None
    """Stands for the setting where all of its pairs have one."""


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
    """Pairs that differ only in the dataset against those that differ only in the seed, by setting."""
    alike: dict[str, list[StudyRun]] = {}
    for run in runs:
        alike.setdefault(run.apart_from(_ASKED), []).append(run)
    pairs = [[pairs_differing_in(key, group) for key in _ASKED] for group in alike.values()]
    measured = [[_of_pairs(kind, shares) for kind in kinds] for kinds in pairs if all(kinds)]
    used = [kinds for kinds in measured if all(kind.group.pairs for kind in kinds)]
    groups = [
        _over_settings(
            [kinds[i] for kinds in used],
            (
                *_wanted(key, [bool(kinds[i]) for kinds in pairs], bool(measured)),
                *(text for kinds in measured for text in kinds[i].group.missing),
            ),
        )
        for i, key in enumerate(_ASKED)
    ]
    return dataclasses.replace(
        _answer("controlled", where, *groups),
        settings=_names([kinds[0].first for kinds in used if kinds[0].first is not None]),
        settings_left_out=sum(any(kinds) for kinds in pairs) - len(used),
    )


def _wanted(key: str, there: Sequence[bool], both: bool) -> tuple[str, ...]:
    """Why there is nothing to average for a kind of pair, if there is not."""
    if both:
        return ()
    if not any(there):
        return (f"two runs that differ only in the {key}",)
    return ("a setting with both kinds of pair",)


def _over_settings(settings: Sequence[_Measured], missing: tuple[str, ...]) -> _Measured:
    """The mean over settings, each with equal weight however many pairs it has."""
    ratios = [one.group.ratio for one in settings if one.group.ratio is not None]
    draws = [one.draws for one in settings if one.draws is not None]
    group = PairGroup(
        ratio=fmean(ratios) if ratios else None,
        pairs=sum(one.group.pairs for one in settings),
        undertrained=sum(one.group.undertrained for one in settings),
        missing=missing,
    )
    return _Measured(group, torch.stack(draws).mean(0) if draws else None)


def _names(runs: Sequence[StudyRun]) -> tuple[str, ...]:
    """What tells settings apart, by one run of each: `topk x16 k=16, layer 8, 1,000,000 tokens`."""
    named = ("architecture", "dictionary", "k", "l0_coefficient", "layer", "tokens")
    varying = dict.fromkeys(key for a, b in itertools.pairwise(runs) for key in differing(a, b, _ASKED))
    more = [key for key in varying if key not in named]
    return tuple(
        ", ".join([_name(run), *(f"{key}={run.keys[key]}" for key in more if key in run.keys)])
        for run in runs
    )


def _name(run: StudyRun) -> str:
    sparsity = "" if run.k is None else f" k={run.k}"
    if run.l0_coefficient is not None:
        sparsity = f" l0_coefficient={run.l0_coefficient:g}"
    return f"{run.architecture} x{run.dictionary}{sparsity}, layer {run.layer}, {run.tokens:,} tokens"


def pairs_differing_in(key: str, runs: Sequence[StudyRun]) -> list[tuple[StudyRun, StudyRun]]:
    """Pairs that differ in `key` (`dataset` or `seed`) and in nothing else that moves the weights."""
    return [
        (a, b)
        for a, b in itertools.combinations(runs, 2)
        if getattr(a, key) != getattr(b, key) and not differing(a, b, (key,))
    ]


def _of_cells(cells: Sequence[Cell], finder: RunFinder, shares: Shares) -> _Measured:
    found, missing = [], []
    for cell in cells:
        counted, sought_in, _ = finder.pair(cell.counted, cell.sought_in)
        if counted is not None and sought_in is not None:
            found.append((counted, sought_in))
        else:
            missing.append(cell.key)
    ratios = [shares.share(*pair).ratio for pair in found]
    draws = [shares.draws(*pair) for pair in found]
    return _measured(found, ratios, draws, missing, shares)


def _of_pairs(pairs: Sequence[tuple[StudyRun, StudyRun]], shares: Shares) -> _Measured:
    found, ratios, draws, missing = [], [], [], []
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
    mean = torch.stack(list(draws)).mean(0) if draws else None
    return _Measured(group, mean, pairs[0][0] if pairs else None)


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
