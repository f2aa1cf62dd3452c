"""Measures of pairs of SAEs beside their nulls, and their means over the pairs that differ in one key."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.bootstrap import Sample
from sae_sweep.analysis.dictionaries import (
    HasBoth,
    Rows,
    halves,
    nulls,
    random_rows,
    rotated_rows,
    rows_of,
    usable_rows,
)
from sae_sweep.analysis.key_measures import (
    CURVE,
    RATES,
    Direction,
    KeyCurve,
    KeyMean,
    KeyMeasure,
    KeyRates,
    Nulls,
    density_bins,
    key_curve,
    key_rates,
    rows_of_key,
)
from sae_sweep.analysis.measures import (
    MEASURES,
    Measure,
    UnitRows,
    Values,
    estimate_measures,
    feature_values,
)
from sae_sweep.analysis.neighbours import THRESHOLDS
from sae_sweep.analysis.pairs import ComparisonEntry, varied_keys
from sae_sweep.config import MatchingConfig, SaeSweepError

NEIGHBOURS = ("ratio", "mmcs", "mutual")
"""Measures that one product of two dictionaries gives."""
_ROOM = 2**30
"""Bytes of weights that are kept for other pairs."""
_SIZES = 32
"""Numbers of random rows between 0 and an SAE's size that stand for all between them."""
_FAR = 1_000_003
"""Added to seeds of nulls, so that no dictionary that was drawn from a small seed is its own null."""


@dataclass(frozen=True)
class Subject:
    """An SAE whose features are compared."""

    entry: ComparisonEntry
    load: Callable[[], HasBoth]
    """Gives its weights; called where more than the decoder is compared."""
    initial: Callable[[], Tensor] | None = None
    """Gives the dictionary that it was trained from, [d_sae, d_in]; None if it is not known."""


@dataclass(frozen=True)
class PairMeasure:
    """A measure of two SAEs, beside one null."""

    a: str
    b: str
    varied: tuple[str, ...]
    """Swept keys in which the two differ."""
    features: str
    """`all`, or `live`: without the features that never fire."""
    chance: str
    """The null; empty if there is none."""
    measure: Measure
    undertrained: bool


@dataclass(frozen=True)
class Measured:
    """What was measured of pairs of SAEs."""

    pairs: tuple[PairMeasure, ...]
    keys: tuple[KeyMeasure, ...]
    curves: tuple[KeyCurve, ...]
    rates: tuple[KeyRates, ...]
    """One per key whose SAEs have densities."""
    left_out: Mapping[str, str]
    """Rows of each SAE that could not be compared, in words."""


@dataclass
class _Work:
    """What all pairs share: settings, and what was computed of an SAE for other pairs."""

    config: MatchingConfig
    measures: Sequence[str]
    device: torch.device | None
    residuals: Mapping[str, Float[Tensor, "tokens d_in"]]
    between: Callable[[], None]
    by_chance: dict[tuple[str, str, int], Mapping[str, Sample]] = field(default_factory=dict)
    """Samples against random rows, by SAE, kind of features and number of rows."""
    left_out: dict[str, str] = field(default_factory=dict)
    loaded: dict[int, HasBoth] = field(default_factory=dict)
    """The weights that were used last, by the SAE's place in memory."""

    def weights(self, one: Subject) -> HasBoth:
        """An SAE's weights, kept for other pairs as long as there is room."""
        found = self.loaded.pop(id(one), None) or one.load()
        self.loaded[id(one)] = found
        while len(self.loaded) > 2 and sum(2 * sae.W_dec.nbytes for sae in self.loaded.values()) > _ROOM:
            del self.loaded[next(iter(self.loaded))]
        return found


def measure_pairs(
    subjects: Sequence[Subject],
    pairs: Sequence[tuple[int, int]],
    config: MatchingConfig,
    *,
    residuals: Mapping[str, Float[Tensor, "tokens d_in"]] | None = None,
    device: torch.device | None = None,
    between: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Measure how far pairs of SAEs match, beside nulls, and the mean over pairs that differ in one key.

    Args:
        subjects: the SAEs.
        pairs: indices of those to compare.
        config: threshold, which rows, which measures and nulls.
        residuals: inputs of each SAE at random tokens, by its name; for the null `tokens`.
        device: where products are computed.
        between: called between blocks and measures, to obey a stop.
        progress: called with the number of pairs that are done, and of all.

    Dead features are left out a second time where densities are known (`features` is `live`). Intervals are
    95 % bootstraps over features: each SAE's features are drawn once, and all its pairs use these draws.

    Raises:
        SaeSweepError: for dictionaries that cannot be compared, naming both SAEs.
    """
    measures = _measures(config)
    work = _Work(config, measures, device, residuals or {}, between)
    rows: list[PairMeasure] = []
    by_key: dict[tuple[str, str], KeyMean] = {}
    for done, (i, j) in enumerate(pairs, start=1):
        a, b = subjects[i], subjects[j]
        undertrained = any(one.entry.init_match > config.undertrained for one in (a, b))
        varied = varied_keys(a.entry.keys, b.entry.keys)
        for features, directions in _both_kinds(a, b, (i, j), work).items():
            rows += _rows_of_pair(a, b, undertrained, features, directions)
            if len(varied) <= 1:
                group = ("".join(varied), features)
                found = by_key.setdefault(group, KeyMean())
                found.add(directions, undertrained=undertrained, seeds=_seeds(a, b))
        progress(done, len(pairs))
    means = {group: found.mean for group, found in by_key.items()}
    return Measured(
        tuple(rows),
        tuple(row for group, found in by_key.items() for row in rows_of_key(*group, found)),
        tuple(key_curve(*group, mean) for group, mean in means.items()),
        tuple(
            key_rates(key, mean)
            for (key, kind), mean in means.items()
            if kind == "live" and RATES in mean.found
        ),
        work.left_out,
    )


def _seeds(a: Subject, b: Subject) -> tuple[str, str] | None:
    """The seeds of two runs, if they are swept."""
    if not all("seed" in one.entry.keys for one in (a, b)):
        return None
    return str(a.entry.keys["seed"]), str(b.entry.keys["seed"])


def _both_kinds(a: Subject, b: Subject, seeds: tuple[int, int], work: _Work) -> dict[str, list[Direction]]:
    """Both directions, over all features and over live ones."""
    try:
        found = {"all": _directions(a, b, "all", seeds, work)}
        known = None not in (a.entry.densities, b.entry.densities)
        if known and work.config.side == "features":
            dead = any(bool((one.entry.densities == 0).any()) for one in (a, b))  # type: ignore[union-attr]
            found["live"] = _directions(a, b, "live", seeds, work) if dead else found["all"]
        return found
    except SaeSweepError as error:
        raise SaeSweepError(f"{error} (a is {a.entry.name}, b is {b.entry.name})") from error


def _directions(
    a: Subject, b: Subject, features: str, seeds: tuple[int, int], work: _Work
) -> list[Direction]:
    (ours, our_ids), (theirs, their_ids) = (_unit_rows(one, features, work) for one in (a, b))
    values = _values(ours, theirs, work)
    return [
        Direction(
            _samples({name: value.a for name, value in values.items()}, seeds[0], _bins(a, our_ids, work)),
            _by_chance(a, ours, b, theirs, features, seeds[0], work),
        ),
        Direction(
            _samples({name: value.b for name, value in values.items()}, seeds[1], _bins(b, their_ids, work)),
            _by_chance(b, theirs, a, ours, features, seeds[1], work),
        ),
    ]


def _measures(config: MatchingConfig) -> tuple[str, ...]:
    """The measures that are asked for, and that the compared rows have."""
    asked = tuple(MEASURES) if config.measures == "all" else NEIGHBOURS
    by_feature = (config.matrix, config.side) == ("decoder", "features")
    return asked if by_feature else tuple(name for name in asked if name != "shared")


def _unit_rows(one: Subject, features: str, work: _Work) -> tuple[UnitRows, Int[Tensor, " n"]]:
    """The rows that are compared, on the device, and their numbers.

    With the encoder's where the shared rule needs them.
    """
    entry, with_encoder = one.entry, "shared" in work.measures
    found = _rows(one, features, work)
    if not len(found.unit):
        raise SaeSweepError(f"matching: {entry.name} has no features to compare: {found.kept.left_out}")
    if features == "all" and found.kept.left_out:
        work.left_out[entry.name] = found.kept.left_out
    unit = found.unit.to(work.device)
    return (UnitRows(*halves(unit)) if with_encoder else UnitRows(unit)), found.kept.ids


def _rows(one: Subject, features: str, work: _Work) -> Rows:
    config, entry = work.config, one.entry
    densities = entry.densities if features == "live" else None
    if "shared" in work.measures:
        return rows_of(work.weights(one), "both", "features", densities)
    if (config.matrix, config.side) == ("decoder", "features"):
        return usable_rows([entry.decoder], densities)
    return rows_of(work.weights(one), config.matrix, config.side, densities)  # type: ignore[arg-type]


def _values(a: UnitRows, b: UnitRows, work: _Work) -> dict[str, Values]:
    config = work.config
    return feature_values(
        a, b, config.threshold, work.measures, absolute=config.absolute, between=work.between
    )


def _bins(one: Subject, ids: Int[Tensor, " n"], work: _Work) -> Float[Tensor, "n bins"] | None:
    """In which bin of density each compared feature is; None if that is not known."""
    densities = one.entry.densities
    if densities is None or work.config.side != "features":
        return None
    return density_bins(densities.cpu()[ids])


def _samples(
    values: Mapping[str, Tensor], seed: int, bins: Float[Tensor, "n bins"] | None = None
) -> dict[str, Sample]:
    """Means and draws of each measure, of the curve and of the rates; one draw of the features serves all."""
    columns = {name: value.float()[:, None] for name, value in values.items()}
    if bins is not None:
        columns[RATES] = torch.cat([bins, bins * columns["mutual"]], 1)
    columns[CURVE] = (values["mmcs"][:, None] > torch.tensor(THRESHOLDS)).float()
    found: dict[str, Sample] = {}
    for n in {len(column) for column in columns.values()}:
        chosen = {name: column for name, column in columns.items() if len(column) == n}
        whole = Sample.of(torch.cat(list(chosen.values()), 1), seed)
        at = 0
        for name, column in chosen.items():
            part = slice(at, at := at + column.shape[1])
            found[name] = Sample(whole.mean[part], whole.draws[:, part], n)
    return found


def _by_chance(
    a: Subject, ours: UnitRows, b: Subject, theirs: UnitRows, features: str, seed: int, work: _Work
) -> Nulls:
    """What a's features would give if b were replaced by each null."""
    made = _nulls_of(b, theirs, _FAR + seed, work)
    found: dict[str, Mapping[str, Sample]] = {}
    step = -(-len(b.entry.decoder) // _SIZES)
    size = -(-len(theirs.unit) // step) * step  # sizes that differ little share a null
    made["random"] = partial(_random, theirs, size, _FAR + seed)
    for name in work.config.nulls:
        known = (a.entry.name, features, size)
        if name == "random" and known in work.by_chance:
            found[name] = work.by_chance[known]
        elif name in made:
            values = _values(ours, made[name](), work)
            found[name] = _samples({measure: value.a for measure, value in values.items()}, seed)
            if name == "random":
                work.by_chance[known] = found[name]
    return found


def _random(like: UnitRows, count: int, seed: int) -> UnitRows:
    """So many random rows in the place of an SAE's, for its encoder too where that is compared."""
    unit = random_rows(count, like.unit.shape[1], seed).to(like.unit)
    if like.encoder is None:
        return UnitRows(unit)
    return UnitRows(unit, random_rows(count, like.encoder.shape[1], seed + 1).to(like.encoder))


def _nulls_of(b: Subject, rows: UnitRows, seed: int, work: _Work) -> dict[str, Callable[[], UnitRows]]:
    """The nulls that can take b's place; the encoder's rows are drawn likewise."""
    by_feature = work.config.side == "features"
    residuals = work.residuals.get(b.entry.name) if by_feature else None
    initial = b.initial() if b.initial and by_feature and "initial" in work.config.nulls else None
    if work.config.matrix == "both":  # an encoder starts with its decoder's directions
        initial, residuals = (
            None if one is None else torch.cat([one, one], 1) for one in (initial, residuals)
        )
    unit = nulls(rows.unit, seed, residuals=residuals, initial=initial)
    if rows.encoder is None:
        return {name: _made(make) for name, make in unit.items()}
    encoder = nulls(rows.encoder, seed + 1, residuals=residuals, initial=initial)
    encoder["rotated"] = partial(rotated_rows, rows.encoder, seed)
    return {name: _made(make, encoder[name]) for name, make in unit.items()}


def _made(unit: Callable[[], Tensor], encoder: Callable[[], Tensor] | None = None) -> Callable[[], UnitRows]:
    return lambda: UnitRows(unit(), encoder and encoder())


def _rows_of_pair(
    a: Subject, b: Subject, undertrained: bool, features: str, directions: Sequence[Direction]
) -> list[PairMeasure]:
    varied = varied_keys(a.entry.keys, b.entry.keys)
    return [
        PairMeasure(a.entry.name, b.entry.name, varied, features, chance, measure, undertrained)
        for name, one in zip(("a_in_b", "b_in_a"), directions, strict=True)
        for chance, null in (one.nulls or {"": {}}).items()
        for measure in estimate_measures(one.found, null, name)
    ]
