"""Figures of features: the numbers beside them are those drawn, and follow from the tables."""

import dataclasses
import math
from xml.etree import ElementTree

import numpy as np
import pyarrow
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pyarrow import parquet

from sae_sweep.analysis.bimodality import Bimodality
from sae_sweep.analysis.spectrum import spectrum
from sae_sweep.config import EvaluationConfig, SaeSweepError
from sae_sweep.report.feature_figures import (
    decile_figure,
    density_figure,
    frequency_figure,
    separation_figure,
    strength_figure,
)
from sae_sweep.report.panels import Panel, runs_name, write_drawn
from sae_sweep.report.position_figures import (
    STUDY_L1,
    activation_figure,
    lm_loss_figure,
    mean_activation,
    running_mean,
    sae_loss_figure,
    spectrum_figure,
    spread_figure,
)
from tests.disks import fill_up
from tests.report.panels import (
    DEAD,
    FEATURES,
    POSITIONS,
    curve,
    only,
    panel,
    positions,
    texts,
    vertical,
)


def test_mean_activation_is_drawn_without_the_first_position_and_smoothed(panels: list[Panel]) -> None:
    figure, numbers = activation_figure(panels)
    for axes, one in zip(figure.axes, panels, strict=True):
        for number, change in enumerate(("none", "zero", "shuffle")):
            stored = only(numbers, panel=one.label, run=one.run, positions=change)
            mean = one.at("mean", change)
            np.testing.assert_array_equal(stored["mean_activation"], [np.nan, *mean[1:]])
            np.testing.assert_array_equal(curve(axes, 2 * number), stored["mean_activation"])
            smooth = stored["mean_activation_running_mean"]
            np.testing.assert_array_equal(curve(axes, 2 * number + 1), smooth)
            assert smooth[20] == pytest.approx(mean[15:25].mean())
            assert np.isnan(smooth[:6]).all()  # the first position is among the ten
    assert "positions zeroed" in texts(figure)
    assert "n = 940 tokens, 40 features" in texts(figure)


def test_bos_is_drawn_with_its_own_activations(panels: list[Panel]) -> None:
    mixed = panel(0)
    table = mixed.positions.set_column(
        mixed.positions.column_names.index("special_active"),
        "special_active",
        pyarrow.array([60, 0, 20] + [0] * (3 * POSITIONS - 3)),
    )
    table = table.set_column(
        table.column_names.index("special_mean"),
        "special_mean",
        pyarrow.array([9.0, math.nan, 4.0] + [math.nan] * (3 * POSITIONS - 3)),
    )
    mean = mean_activation(dataclasses.replace(mixed, positions=table), first=True)
    assert mean[0] == 9.0
    assert mean[1] == mixed.at("mean")[1]
    assert mean[2] == pytest.approx((20 * 4.0 + 80 * mixed.at("mean")[2]) / 100)
    figure, _ = activation_figure(panels, first=True)
    assert figure.axes[0].get_yscale() == "log"
    assert curve(figure.axes[0], 0)[0] == 9.0


@pytest.mark.parametrize(("trained", "marks"), [(32, [31.5]), (POSITIONS, []), (None, [])])
def test_the_end_of_the_training_context_is_marked_where_it_is_passed(
    trained: int | None, marks: list[float]
) -> None:
    one = dataclasses.replace(panel(0), trained=trained)
    figures = [
        activation_figure([one]).figure,
        lm_loss_figure(one, "gpt2").figure,
        sae_loss_figure([one]).figure,
    ]
    for figure in figures:
        assert all(vertical(axes) == marks for axes in figure.axes)
        notes = " ".join(texts(figure).split())
        assert ("end of the training context (32 tokens)" in notes) == bool(marks)


def test_losses_are_comparable_unless_the_study_is_asked_for(panels: list[Panel]) -> None:
    figure, numbers = sae_loss_figure(panels, ("none", "zero"))
    study = sae_loss_figure(panels, ("shuffle", "zero"), ce=False, l1=STUDY_L1)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["positions unchanged", "positions zeroed"]
    for one in panels:
        ours = only(numbers, panel=one.label, positions="zero")
        np.testing.assert_array_equal(ours["loss"], one.at("mse", "zero"))
        np.testing.assert_array_equal(ours["ce_sae"], one.at("ce_sae", "zero"))
        theirs = only(study.numbers, panel=one.label, positions="zero")["loss"]
        np.testing.assert_array_equal(theirs, one.at("mse", "zero") + 0.004 * one.at("l1", "zero"))
    np.testing.assert_array_equal(curve(figure.axes[1], 1), running_mean(panels[0].at("ce_sae", "zero")))
    assert "squared error + 0.004 L1" in texts(study.figure)


def test_an_sae_without_the_change_has_no_line() -> None:
    some = [panel(0), panel(1, changes=("none",))]
    assert set(sae_loss_figure(some, ("zero",)).numbers["panel"].to_pylist()) == {"layer 0"}
    with pytest.raises(SaeSweepError, match="no SAE was analysed with positions zero: there is none"):
        sae_loss_figure(some[1:], ("zero",))


def test_peaks_of_a_spectrum_are_marked_and_named() -> None:
    wave = 1.5 + np.sin(2 * np.pi * np.arange(POSITIONS) / 8)
    table = positions(0, ("none",))
    table = table.set_column(table.column_names.index("mean"), "mean", pyarrow.array(wave))
    one = dataclasses.replace(panel(0), positions=table)
    found = spectrum(torch.from_numpy(mean_activation(one)), permutations=50)
    figure, numbers = spectrum_figure([one], [{"none": found}])
    assert "7.83" in texts(figure)  # 47 positions / 6
    stored = only(numbers)
    np.testing.assert_array_equal(stored["amplitude"], found.amplitude.numpy())
    assert list(stored["periods"][stored["stands_out"]]) == [47 / 6]
    with pytest.raises(SaeSweepError, match="0 spectra for 1 panels"):
        spectrum_figure([one], [])
    with pytest.raises(SaeSweepError, match="no spectrum to draw"):
        spectrum_figure([one], [{}])


def test_deviation_has_a_dot_per_position_but_the_first(panels: list[Panel]) -> None:
    figure, numbers = spread_figure(panels)
    dots = np.asarray(figure.axes[1].collections[0].get_offsets())
    stored = only(numbers, panel="layer 1")
    np.testing.assert_array_equal(dots, np.stack([stored["mean"], stored["std"]], 1))
    assert list(stored["position"]) == list(range(1, POSITIONS))


def test_dead_features_are_counted_and_not_drawn(panels: list[Panel]) -> None:
    live = list(range(FEATURES - DEAD))
    for drawn in (strength_figure(panels), frequency_figure(panels), decile_figure(panels)):
        assert sorted(only(drawn.numbers, panel="layer 2")["feature"]) == live
        assert f"are not drawn: {DEAD}" in texts(drawn.figure)
    assert "not drawn either: 1" in texts(strength_figure(panels).figure)
    figure, numbers = density_figure(panels, EvaluationConfig(dense=0.1, ultra_rare=0.003))
    assert only(numbers, panel="layer 0")["features"].sum() == len(live)
    assert f"{DEAD} dead\n1 ultra-rare\n13 dense" in texts(figure)
    assert vertical(figure.axes[0]) == [0.003, 0.1]


def test_deciles_have_their_own_names_and_the_study_others(panels: list[Panel]) -> None:
    numbers = only(decile_figure(panels).numbers, panel="layer 0")
    rows = panels[0].features.to_pydict()
    assert [rows["decile_5"][feature] for feature in numbers["feature"]] == list(numbers["50 %"])
    assert list(numbers["50 %"]) == sorted(numbers["50 %"])
    study = only(decile_figure(panels, study=True).numbers, panel="layer 0")
    assert list(study["feature"]) == list(range(FEATURES - DEAD))
    assert list(study["Decile 1"]) == rows["decile_2"][:-DEAD]
    assert list(study["Decile 8"]) == rows["decile_9"][:-DEAD]
    assert list(study["Decile 10"]) == rows["max"][:-DEAD]
    assert "Decile 9" not in study


def test_separation_says_its_test(panels: list[Panel]) -> None:
    tests = [
        Bimodality(0.03, 0.0, 2.5, 33, 7),
        Bimodality(0.01, 0.95, 1.0, 33, 7),
        Bimodality(math.nan, math.nan, math.nan, 3, 37),
    ]
    figure, numbers = separation_figure(panels, tests)
    assert "dip 0.0300, p < 1e-5\nD = 2.50" in texts(figure)
    assert "p = 0.95" in texts(figure)
    assert "n = 3: too few" in texts(figure)
    assert only(numbers, panel="layer 1")["features"].sum() == FEATURES - DEAD
    assert set(only(numbers, panel="layer 0")["ashman_d"]) == {2.5}


def test_an_sae_whose_features_are_all_dead_has_empty_plots() -> None:
    one = panel(0)
    dead = one.features.slice(FEATURES - DEAD)
    panels = [dataclasses.replace(one, features=dead)]
    nothing = Bimodality(math.nan, math.nan, math.nan, 0, DEAD)
    for drawn in (
        strength_figure(panels),
        frequency_figure(panels),
        density_figure(panels),
        decile_figure(panels),
        separation_figure(panels, [nothing]),
    ):
        drawn.figure.draw_without_rendering()
        assert f"drawn: {DEAD}" in texts(drawn.figure)


def test_a_single_live_feature_and_a_few_positions_are_drawn_too() -> None:
    whole = panel(0)
    tables = {"features": whole.features.slice(FEATURES - DEAD - 1), "positions": whole.positions.slice(0, 6)}
    one = dataclasses.replace(whole, **tables, trained=None)
    tokens = one.positions.column_names.index("tokens")
    one = dataclasses.replace(
        one, positions=one.positions.set_column(tokens, "tokens", pyarrow.array([0, 1, 0, 0, 0, 0]))
    )
    test = Bimodality(math.nan, math.nan, math.nan, 1, DEAD)
    for drawn in (
        strength_figure([one]),
        frequency_figure([one]),
        density_figure([one]),
        decile_figure([one]),
        separation_figure([one], [test]),
        activation_figure([one]),
        activation_figure([one], first=True),
        spread_figure([one]),
    ):
        drawn.figure.draw_without_rendering()
    figure, numbers = sae_loss_figure([one])
    np.testing.assert_array_equal(curve(figure.axes[1], 0), only(numbers)["loss"])  # too few to smooth
    assert "running means" not in texts(figure)


def test_a_figure_is_written_as_png_and_svg_with_its_numbers(tmp_path, panels: list[Panel]) -> None:
    named = dataclasses.replace(panels[0], label="$x^2$\x1b", run="a_$k$<b>\x1b[31m")
    files = write_drawn(tmp_path, "activation", activation_figure([named, panels[1]], first=True))
    assert files.png.read_bytes().startswith(b"\x89PNG")
    svg = files.svg.read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "mathdefault" not in svg  # labels of a log axis are text without markup
    assert "$x^2$" in svg
    assert "\x1b" not in svg
    assert parquet.read_table(files.numbers).num_rows == 2 * 3 * POSITIONS
    again = write_drawn(tmp_path / "again", "activation", activation_figure([named, panels[1]], first=True))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_a_full_disk_leaves_no_part_of_a_figure(small_disk, panels: list[Panel]) -> None:
    fill_up(small_disk, 2**16)
    with pytest.raises(SaeSweepError, match="no disk space left"):
        write_drawn(small_disk, "activation", activation_figure(panels[:1]))
    assert {path.name for path in small_disk.iterdir()} == {"filler", "activation.parquet"}


def test_text_of_a_figure_does_not_overlap(tmp_path) -> None:
    many = [panel(layer) for layer in range(5)]
    for figure in (activation_figure(many).figure, sae_loss_figure(many, ("none", "zero")).figure):
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        below = [figure._supxlabel, *figure.legends, *figure.texts]
        below = [one for one in below if one is not figure._suptitle and one is not figure._supylabel]
        boxes = [one.get_window_extent(renderer).padded(-0.5) for one in dict.fromkeys(below)]
        plots = [axes.get_tightbbox(renderer) for axes in figure.axes]
        for number, box in enumerate(boxes):
            assert box.y0 >= 0
            assert not any(box.overlaps(other) for other in [*boxes[:number], *plots])
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in activation_figure(many).figure.axes]
    assert labelled == [False, True, True, True, True]  # those above an empty place have numbers, too


def test_names_of_runs_in_a_title() -> None:
    assert runs_name(["a_L1_k16"]) == "a_L1_k16"
    assert runs_name([f"a_L{layer}_k16" for layer in (1, 2, 10)]) == "a_L…_k16 (3 SAEs)"
    assert runs_name(["left", "right"]) == "…t (2 SAEs)"
    assert runs_name(["one", "two!"]) == "one, two! (2 SAEs)"
    assert runs_name(["aa", "aaa"]) == "aa… (2 SAEs)"


def test_a_figure_of_nothing_and_tables_of_another_version_are_refused(panels: list[Panel]) -> None:
    with pytest.raises(SaeSweepError, match="at least one analysed SAE"):
        activation_figure([])
    old = panels[0].positions.drop_columns(["positions"])
    with pytest.raises(SaeSweepError, match="gpt2_L0_k16: its analysis has no column 'positions': run task"):
        dataclasses.replace(panels[0], positions=old)
    with pytest.raises(SaeSweepError, match="nothing by unchanged positions"):
        panel(0, changes=("zero",))
