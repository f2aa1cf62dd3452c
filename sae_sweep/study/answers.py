"""Does the dataset matter more than the seed? Answered as in the study, and without its confounds.

The study compares SAEs that share their initial dictionary (other datasets) with SAEs that do not (other
seeds), at unequal budgets, in one direction, dead features included. The controlled answers compare only
runs that differ in nothing else, at equal budgets, with both directions averaged and live features only.
They average over the settings (size, sparsity, architecture, layer, ...) that have both kinds of pair, with
equal weight, so that what a setting does to both kinds cancels. Intervals are 95 % bootstraps over features;
all pairs with an SAE use the same resamples of it.
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
UNDERTRAINED = "not told: undertrained runs may match only because of their start"
SHARED_STARTS = "shared starts"
"""Runs of equal seed and size start from the same dictionary (`init.shared=true`)."""
OWN_STARTS = "own starts"
"""Every run starts from its own dictionary (`init.shared=false`)."""
_COMPARED = ("dataset", "seed")


@dataclass(frozen=True)
class PairSet:
    """Pairs of runs that differ in one setting."""

    ratio: float | None
    """Mean share of matched features; None without pairs."""
    pairs: int
    undertrained: int
    """Pairs with a run that still matches its own initial dictionary above the limit."""
    mixed: int
    """Pairs with a run that was trained with other numerics for a part of the time."""
    missing: tuple[str, ...] = ()
    """SAEs or pairs that are needed and missing."""


@dataclass(frozen=True)
class Answer:
    """Answer by one way of comparing."""

    way: str
    """`published`, `as in the study`, or `controlled`."""
    where: str
    """Which runs: the sweep, and shared or own starts."""
    dataset: PairSet
    seed: PairSet
    difference: float | None
    """Ratio of the dataset pairs minus that of the seed pairs; below 0 if the dataset moves more."""
    low: float | None
    """Lower end of the 95 % interval of the difference; None if the features are unknown."""
    high: float | None
    settings: tuple[str, ...] = ()
    """Controlled answers only: the settings that have both kinds of pair; they have equal weight."""
    settings_left_out: int = 0
    """Controlled answers only: number of settings that have one kind of pair only."""

    @property
    def larger(self) -> str:
        """The answer in words; undecided if the interval contains 0, none from undertrained pairs."""
        if self.undertrained:
            return UNDERTRAINED
        if self.difference is None or self.difference == 0:
            return UNDECIDED
        if self.low is not None and self.high is not None and not (self.low > 0 or self.high < 0):
            return UNDECIDED
        return DATASET_MORE if self.difference < 0 else SEED_MORE

    @property
    def undertrained(self) -> int:
        """Number of its pairs that are undertrained."""
        return self.dataset.undertrained + self.seed.undertrained

    @property
    def mixed(self) -> int:
        """Number of its pairs that are mixed."""
        return self.dataset.mixed + self.seed.mixed


@dataclass(frozen=True)
class _Measured:
    """A set of pairs, and its mean ratio in each resample."""

    pair_set: PairSet
    draws: Float[Tensor, " resamples"] | None
    first: StudyRun | None = None
    """A run of these pairs, which names their setting."""


def published_answer() -> Answer:
    """Dataset cells and seed cells of the largest dictionary, as published in Table 1."""
    measured = []
    for cells in (dataset_cells(), seed_cells_at_baseline()):
        ratio = fmean(cell.published for cell in cells if cell.published is not None) / 100
        measured.append(_Measured(PairSet(ratio, len(cells), undertrained=0, mixed=0), None))
    return _answer("published", "the study", *measured)


def answer_as_in_study(runs: Sequence[StudyRun], shares: Shares, where: str) -> Answer:
    """The study's cells measured in its way: one direction, all features, any starts."""
    finder = RunFinder(runs)
    measured = [_of_cells(cells, finder, shares) for cells in (dataset_cells(), seed_cells_at_baseline())]
    return _answer("as in the study", where, *measured)


def answer_controlled(runs: Sequence[StudyRun], shares: Shares, where: str) -> Answer:
    """Pairs that differ only in the dataset against pairs that differ only in the seed, per setting.

    Undertrained runs are left out, unless no setting has both kinds of pair without them.
    """
    trained = [run for run in runs if not shares.undertrained(run)]
    answer = _controlled(trained, shares, where)
    return answer if answer.difference is not None else _controlled(runs, shares, where)


def _controlled(runs: Sequence[StudyRun], shares: Shares, where: str) -> Answer:
    alike: dict[str, list[StudyRun]] = {}
    for run in runs:
        alike.setdefault(run.apart_from(_COMPARED), []).append(run)
    pairs = [[pairs_differing_in(key, setting) for key in _COMPARED] for setting in alike.values()]
    measured = [[_of_pairs(kind, shares) for kind in kinds] for kinds in pairs if all(kinds)]
    used = [kinds for kinds in measured if all(kind.pair_set.pairs for kind in kinds)]
    averaged = [
        _over_settings(
            [kinds[i] for kinds in used],
            (
                *_why_missing(key, [bool(kinds[i]) for kinds in pairs], bool(measured)),
                *(text for kinds in measured for text in kinds[i].pair_set.missing),
            ),
        )
        for i, key in enumerate(_COMPARED)
    ]
    return dataclasses.replace(
        _answer("controlled", where, *averaged),
        settings=_names([kinds[0].first for kinds in used if kinds[0].first is not None]),
        settings_left_out=sum(any(kinds) for kinds in pairs) - len(used),
    )


def _why_missing(key: str, there: Sequence[bool], both: bool) -> tuple[str, ...]:
    """What a kind of pair lacks if no setting has both kinds."""
    if both:
        return ()
    if not any(there):
        return (f"two runs that differ only in the {key}",)
    return ("a setting with both kinds of pair",)


def _over_settings(settings: Sequence[_Measured], missing: tuple[str, ...]) -> _Measured:
    """The mean over settings, each with equal weight however many pairs it has."""
    ratios = [one.pair_set.ratio for one in settings if one.pair_set.ratio is not None]
    draws = [one.draws for one in settings if one.draws is not None]
    pair_set = PairSet(
        ratio=fmean(ratios) if ratios else None,
        pairs=sum(one.pair_set.pairs for one in settings),
        undertrained=sum(one.pair_set.undertrained for one in settings),
        mixed=sum(one.pair_set.mixed for one in settings),
        missing=missing,
    )
    return _Measured(pair_set, torch.stack(draws).mean(0) if draws else None)


def _names(runs: Sequence[StudyRun]) -> tuple[str, ...]:
    """Names of settings, given one run of each: `topk x16 k=16, layer 8, 1,000,000 tokens`."""
    named = ("architecture", "dictionary", "k", "l0_coefficient", "layer", "tokens")
    varying = dict.fromkeys(key for a, b in itertools.pairwise(runs) for key in differing(a, b, _COMPARED))
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
    """Pairs that differ in `key` (`dataset` or `seed`) and in no other key that determines the weights."""
    return [
        (a, b)
        for a, b in itertools.combinations(runs, 2)
        if getattr(a, key) != getattr(b, key) and not differing(a, b, (key,))
    ]


def _of_cells(cells: Sequence[Cell], finder: RunFinder, shares: Shares) -> _Measured:
    pairs, missing = [], []
    for cell in cells:
        counted, sought_in, _ = finder.pair(cell.counted, cell.sought_in)
        if counted is not None and sought_in is not None:
            pairs.append((counted, sought_in))
        else:
            missing.append(cell.key)
    ratios = [shares.share(*pair).ratio for pair in pairs]
    draws = [shares.draws(*pair) for pair in pairs]
    return _measured(pairs, ratios, draws, missing, shares)


def _of_pairs(pairs: Sequence[tuple[StudyRun, StudyRun]], shares: Shares) -> _Measured:
    used, ratios, draws, missing = [], [], [], []
    for a, b in pairs:
        drawn = (shares.draws(a, b, live=True) + shares.draws(b, a, live=True)) / 2
        if drawn.isnan().any():
            missing.append(f"live features of {a.name} or {b.name}")
            continue
        used.append((a, b))
        ratios.append((shares.live_ratio(a, b) + shares.live_ratio(b, a)) / 2)
        draws.append(drawn)
    return _measured(used, ratios, draws, missing, shares)


def _measured(
    pairs: Sequence[tuple[StudyRun, StudyRun]],
    ratios: Sequence[float],
    draws: Sequence[Tensor],
    missing: Sequence[str],
    shares: Shares,
) -> _Measured:
    pair_set = PairSet(
        ratio=fmean(ratios) if ratios else None,
        pairs=len(pairs),
        undertrained=sum(shares.undertrained(*pair) for pair in pairs),
        mixed=sum(a.mixed or b.mixed for a, b in pairs),
        missing=tuple(missing),
    )
    mean = torch.stack(list(draws)).mean(0) if draws else None
    return _Measured(pair_set, mean, pairs[0][0] if pairs else None)


def _answer(way: str, where: str, dataset: _Measured, seed: _Measured) -> Answer:
    difference = low = high = None
    if dataset.pair_set.ratio is not None and seed.pair_set.ratio is not None:
        difference = dataset.pair_set.ratio - seed.pair_set.ratio
    if dataset.draws is not None and seed.draws is not None:
        low, high = percentile_interval(dataset.draws - seed.draws)
    return Answer(way, where, dataset.pair_set, seed.pair_set, difference, low, high)


def dataset_or_seed(
    runs: Sequence[StudyRun],
    shares: Shares,
    *,
    sweep: str = "this sweep",
    paper: Sequence[StudyRun] = (),
    paper_shares: Shares | None = None,
    paper_sweep: str = "paper",
) -> tuple[Answer, ...]:
    """The answers of all ways of comparing.

    Args:
        runs: runs of the reported sweep.
        shares: matches these runs.
        sweep: name of the reported sweep.
        paper: runs of another sweep that follows the study to the letter, answered as in the study.
        paper_shares: matches the paper's runs.
        paper_sweep: name of the paper's sweep.
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


def _starts(runs: Sequence[StudyRun]) -> str:
    kinds = {run.init_shared for run in runs}
    if len(kinds) > 1:
        return "shared and own starts"
    return SHARED_STARTS if kinds == {True} else OWN_STARTS
