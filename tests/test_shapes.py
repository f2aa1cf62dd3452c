"""While the tests run, a tensor of a wrong shape is refused wherever the package names its shape."""

import sys
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from sae_sweep.analysis import evaluate
from sae_sweep.ops import total_variance
from tests import shapes


class Pair(NamedTuple):
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]


@jaxtyped(typechecker=shapes.checked)
def first(rows: list[Float[Tensor, " _n"]], bias: Float[Tensor, ""] | None = None) -> Pair:
    del bias
    return Pair(rows[0], rows[-1])


@jaxtyped(typechecker=shapes.checked)
def both(one: Pair, other: Pair | None) -> None:
    del one, other


def test_the_package_refuses_a_wrong_shape() -> None:
    assert total_variance(torch.zeros(3, 2)) == 0
    with pytest.raises(TypeCheckError, match="total_variance"):
        total_variance(torch.zeros(3))


def test_every_item_optional_and_field_is_checked() -> None:
    assert first([torch.zeros(2), torch.ones(2)], torch.tensor(1.0)).right.sum() == 2
    with pytest.raises(TypeCheckError, match="parameter 'rows'"):
        first([torch.zeros(2)] * 50 + [torch.zeros(2, 2)])
    with pytest.raises(TypeCheckError, match="parameter 'bias'"):
        first([torch.zeros(2)], torch.zeros(1))
    with pytest.raises(TypeCheckError, match="return value"):
        first([torch.zeros(2), torch.zeros(3)])


def test_arguments_are_checked_however_they_are_given() -> None:
    @jaxtyped(typechecker=shapes.checked)
    def call(one: Float[Tensor, " n"], *more: int, named: Float[Tensor, " n"] | None = None) -> None:
        del one, more, named

    call(torch.zeros(2), 1, 2, named=torch.zeros(2))
    for arguments, keywords, name in (
        ((torch.zeros(2, 2),), {}, "one"),
        ((), {"one": torch.zeros(2, 2)}, "one"),
        ((torch.zeros(2), 1, 2), {"named": torch.zeros(3)}, "named"),
    ):
        with pytest.raises(TypeCheckError, match=f"parameter '{name}'"):
            call(*arguments, **keywords)


def test_axis_names_hold_within_one_named_tuple() -> None:
    both(Pair(torch.zeros(2), torch.zeros(2)), Pair(torch.zeros(3), torch.zeros(3)))
    both(Pair(torch.zeros(2), torch.zeros(2)), None)
    with pytest.raises(TypeCheckError, match="parameter 'other'"):
        both(Pair(torch.zeros(2), torch.zeros(2)), Pair(torch.zeros(2), torch.zeros(3)))


def test_no_module_with_shapes_was_imported_too_early() -> None:
    imported = {name: sys.modules[name] for name in shapes.modules() if name in sys.modules}
    assert evaluate.__module__ in imported
    for name, module in imported.items():
        assert type(module.__spec__.loader).__name__ == "_JaxtypingLoader", name
