"""Checks jaxtyping's shapes in the package while the tests run; all other annotations are mypy's."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jaxtyping
from typeguard import (
    CollectionCheckStrategy,
    TypeCheckError,
    TypeCheckMemo,
    check_type,
    check_type_internal,
    checker_lookup_functions,
)

PACKAGE = Path(__file__).parents[1] / "sae_sweep"


def install() -> None:
    """Call it before any module with shapes is imported."""
    jaxtyping.install_import_hook(modules(), "tests.shapes.checked")


def modules() -> list[str]:
    """Names of the package's modules that give shapes."""
    files = (path for path in PACKAGE.rglob("*.py") if "from jaxtyping import" in path.read_text())
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the arguments and the result that have a shape, every item of a list included."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    positions = _positions(function)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        for name, hint in hints.items():
            if name in keywords:
                _check(keywords[name], hint)
            elif positions.get(name, len(arguments)) < len(arguments):
                _check(arguments[positions[name]], hint)
        result = function(*arguments, **keywords)
        if "return" in hints:
            _check(result, hints["return"])
        return result

    return call if hints else function


def _positions(function: Callable[..., Any]) -> dict[str, int]:
    """Parameters that may be given without their names; quicker to look up than `Signature.bind`."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: at for at, one in enumerate(parameters) if one.kind <= one.POSITIONAL_OR_KEYWORD}


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _has_shape(hint: Any) -> bool:
    if _is_array(hint):
        return True
    return bool(_fields_with_shape(hint)) or any(map(_has_shape, get_args(hint)))


def _fields_with_shape(hint: Any) -> dict[str, Any]:
    """Fields of a NamedTuple; none of any other type."""
    is_named_tuple = isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")
    return _shapes_of(hint) if is_named_tuple else {}


@functools.cache
def _shapes_of(hint: type) -> dict[str, Any]:
    return {name: field for name, field in get_type_hints(hint).items() if _has_shape(field)}


def _check(value: Any, hint: Any) -> None:
    if _is_array(hint) and isinstance(value, hint):
        return  # ten times as quick as typeguard, which says what is wrong
    check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)


def _check_fields(value: Any, kind: Any, args: Any, memo: TypeCheckMemo) -> None:
    """Axis names hold within one value: a function may take two of a kind, of different sizes."""
    del args
    if not isinstance(value, kind):
        raise TypeCheckError(f"is no {kind.__qualname__}")
    with jaxtyping.jaxtyped("context"):
        for name, hint in _fields_with_shape(kind).items():
            check_type_internal(getattr(value, name), hint, memo)


checker_lookup_functions.insert(
    0, lambda kind, args, extras: _check_fields if _fields_with_shape(kind) else None
)
