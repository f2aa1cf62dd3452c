"""Tables of SAEs to draw, and what a figure shows."""

import math

import numpy as np
import pyarrow
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from sae_sweep.report.panels import Panel

FEATURES, POSITIONS, DEAD = 40, 48, 7


def features(seed: int) -> pyarrow.Table:
    """Statistics of random activations; the last features are dead, and the first fires once."""
    random = np.random.default_rng(seed)
    values = [random.lognormal(size=1 + 5 * i) for i in range(FEATURES - DEAD)] + [np.zeros(0)] * DEAD
    nothing = np.full(10, np.nan)
    deciles = [np.quantile(v, np.arange(1, 11) / 10) if len(v) else nothing for v in values]
    return pyarrow.table(
        {
            "feature": np.arange(FEATURES, dtype=np.int32),
            "active": [len(v) for v in values],
            "density": [len(v) / 1000 for v in values],
            "mean": [v.mean() if len(v) else math.nan for v in values],
            "std": [v.std() if len(v) else math.nan for v in values],
            "max": [v.max() if len(v) else math.nan for v in values],
            **{f"decile_{tenth}": [row[tenth - 1] for row in deciles] for tenth in range(1, 10)},
        }
    )


def positions(seed: int, changes: tuple[str, ...]) -> pyarrow.Table:
    """BOS, which does not count, at the first position."""
    random = np.random.default_rng(seed)
    tables = []
    for change in changes:
        counted = np.arange(POSITIONS) > 0
        drawn = {
            name: np.where(counted, random.uniform(1, 2, POSITIONS), np.nan)
            for name in ("mean", "std", "mse", "l1", "ce_clean", "ce_sae")
        }
        tables.append(
            pyarrow.table(
                {
                    "positions": [change] * POSITIONS,
                    "position": np.arange(POSITIONS, dtype=np.int32),
                    "tokens": 20 * counted,
                    "active": 80 * counted,
                    **drawn,
                    "special_active": 60 * ~counted,
                    "special_mean": np.where(counted, np.nan, 9.0),
                }
            )
        )
    return pyarrow.concat_tables(tables)


def panel(layer: int, trained: int = 32, changes: tuple[str, ...] = ("none", "zero", "shuffle")) -> Panel:
    return Panel(f"layer {layer}", f"gpt2_L{layer}_k16", features(layer), positions(layer, changes), trained)


def only(table: pyarrow.Table, **values: object) -> dict[str, np.ndarray]:
    rows = [row for row in table.to_pylist() if all(row[name] == value for name, value in values.items())]
    return {name: np.array([row[name] for row in rows]) for name in table.column_names}


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def vertical(axes: Axes) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]


def curve(axes: Axes, number: int) -> np.ndarray:
    return np.asarray(axes.lines[number].get_ydata())
