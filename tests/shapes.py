"""Checks jaxtyping's shapes in the package while the tests run; all other annotations are mypy's."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jaxtyping
from typeguard import CollectionCheckStrategy, check_type

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
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords).arguments
        for name in hints.keys() & given:
            _check(given[name], hints[name])
        result = function(*arguments, **keywords)
        if "return" in hints:
            _check(result, hints["return"])
        return result

    return call if hints else function


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return any(map(_has_shape, get_type_hints(hint).values()))
    return any(map(_has_shape, get_args(hint)))


def _check(value: Any, hint: Any) -> None:
    check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
