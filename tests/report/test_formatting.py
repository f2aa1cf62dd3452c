import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.config import ModelConfig, RunConfig, TopKConfig
from sae_sweep.report.formatting import (
    TextTable,
    count,
    described,
    flop,
    hours,
    listed,
    number_span,
    short_labels,
    shorten,
    size,
    span,
)

words = st.text("abcdefgh_ ", min_size=0, max_size=25)


def test_labels_are_made_of_the_keys_that_vary():
    keys = [{"model": "pico", "seed": seed, "dataset": name} for name in ("owt", "pile") for seed in (1, 2)]
    assert short_labels(list("abcd"), keys) == ["owt seed 1", "owt seed 2", "pile seed 1", "pile seed 2"]


def test_a_key_that_one_run_lacks_is_left_out_of_its_label():
    keys = [{"architecture": "topk", "k": 16}, {"architecture": "jumprelu", "l0_coefficient": 0.1}]
    assert short_labels(["a", "b"], keys) == ["topk k16", "jumprelu l0_coefficient 0.1"]


def test_labels_fall_back_to_what_the_names_do_not_share():
    names = ["pico_L6_owt_s1", "pico_L6_owt_s2", "pico_L8_owt_s1"]
    assert short_labels(names) == ["L6_s1", "L6_s2", "L8_s1"]
    assert short_labels(names, [{"seed": 1}] * 3) == ["L6_s1", "L6_s2", "L8_s1"]
    assert short_labels(["only_run"]) == ["only_run"]
    assert short_labels(["a_b", "a_b_a"]) == ["a_b", "a_b_a"]


def test_saes_are_described_by_all_that_names_them_except_their_datasets():
    model = ModelConfig("bundled:gpt2-pico")
    runs = [
        RunConfig(
            model=model,
            architecture=TopKConfig(k=k),
            layer=2,
            dictionary=4,
            seed=seed,
            tokens=1000 * k,
            batch=64,
        )
        for k in (8, 16)
        for seed in (1, 2, 3)
    ]
    assert described(runs) == (
        "SAEs: gpt2-pico; layer 2; topk; k 8 and 16; dictionary 4; seeds 1, 2 and 3; "
        "8k to 16k training tokens."
    )
    many = [RunConfig(model=model, layer=2, seed=seed, tokens=1000, batch=64) for seed in range(9)]
    assert "; 9 values of seed; 1k training tokens." in described(many)
    assert described([]) == ""
    assert (listed(["a"]), listed(["a", "b"]), number_span([3, 1000, 7])) == ("a", "a and b", "3 to 1,000")


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), min_size=1, max_size=6))
def test_labels_are_all_different(parts):
    names = list(dict.fromkeys("_".join(each) for each in parts))
    labels = short_labels(names)
    assert len(set(labels)) == len(names)
    assert all(labels)


@given(words, st.integers(1, 30))
def test_shorten_keeps_both_ends(text, width):
    short = shorten(text, width)
    assert len(short) <= width
    if len(text) <= width:
        assert short == text
    else:
        head, tail = short.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_columns_are_aligned():
    table = TextTable(["run", "n"], left={0})
    table.add(["a", "1"])
    table.add(["long", "1000"])
    assert table.lines(80) == ["run      n", "----------", "a        1", "long  1000"]
    assert table.width == 10


def test_columns_go_in_the_given_order_and_only_if_they_must():
    table = TextTable(["name", "first", "second"], left={0})
    table.add(["x", "1", "2"])
    assert table.lines(19, drop=(1, 2))[0] == "name  first  second"
    assert table.lines(18, drop=(1, 2))[0] == "name  second"
    assert table.lines(11, drop=(1, 2))[0] == "name"


@settings(deadline=None)
@given(st.lists(st.tuples(words, words, words), max_size=4), st.integers(5, 60))
def test_no_line_is_too_wide(rows, width):
    table = TextTable(["first", "second", "third"], left={0})
    for row in rows:
        table.add(row)
    assert all(len(line) <= width for line in table.lines(width, drop=(1,)))


def test_rows_must_fit_the_head():
    table = TextTable(["one", "two"])
    table.add(["only one"])
    with pytest.raises(ValueError, match="shorter"):
        table.lines(80)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(0), "0"),
        (count(999), "999"),
        (count(100_000_000), "100M"),
        (count(999_936), "1,000k"),
        (count(7_300_000_000), "7.3B"),
        (flop(4.66e19), "46.6 EFLOP"),
        (flop(0), "0 MFLOP"),
        (size(2**31), "2 GiB"),
        (size(1145 * 2**30), "1.12 TiB"),
        (size(2000 * 2**40), "2,000 TiB"),
        (size(529_000), "517 KiB"),
        (size(0), "0 bytes"),
        (span(12.4), "12 s"),
        (span(180), "3 min"),
        (span(5400), "1.5 h"),
        (span(7200), "2 h"),
        (span(47 * 3600), "47 h"),
        (span(3 * 86400), "3 d"),
        (hours(9444.46), "9,444.5 hours"),
        (hours(0.15), "9 min"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_cell_is_one_line_that_obeys_nothing() -> None:
    table = TextTable(["run", "text"], left={0, 1})
    table.add(["a\nb", "\x1b[31m\u202e"])
    assert table.lines(80) == ["run   text", "-" * 20, r"a\nb  \x1b[31m\u202e"]
    table.rename(["c\rd"])
    assert table.lines(80)[-1].startswith(r"c\rd ")
    assert short_labels(["x_a\nb", "x_c"]) == [r"a\nb", "c"]
    assert short_labels(["x", "y"], [{"dataset": "\x1b"}, {"dataset": "b"}]) == [r"\x1b", "b"]
