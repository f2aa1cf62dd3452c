"""The overrides of a command line as they are typed: text stays the text that it was."""

import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer

_LITERALS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
_BEFORE_A_VALUE = (OverrideLexer.COMMA, OverrideLexer.BRACKET_OPEN, OverrideLexer.POPEN)
_AFTER_A_VALUE = (OverrideLexer.COMMA, OverrideLexer.BRACKET_CLOSE, OverrideLexer.PCLOSE, -1)
_OF_TEXT = ("choice", "shuffle", "sort", "tag")
"""Functions of Hydra's grammar that take text."""
_KEY = re.compile(r"(\+{0,2}[A-Za-z_$][\w$./@:-]*)=(.*)", re.ASCII | re.DOTALL)


def key_of(word: str) -> str:
    """The key or group that an override sets."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def as_typed(word: str, is_text: Callable[[str], bool]) -> str:
    """An override whose values Hydra reads as text if its key holds text: `sweep=2026_11_26`, `sweep=1e5`.

    Hydra would read a number, or true or false, and lose how it was written. `null` stays null.
    """
    if "=" not in word or not is_text(key_of(word)):
        return word
    try:
        tokens = _tokens(word)
    except HydraException:
        return word
    functions = {one.text for one, after in itertools.pairwise(tokens) if after.type == OverrideLexer.POPEN}
    if functions - set(_OF_TEXT):
        return word
    start = next(index for index, token in enumerate(tokens) if token.type == OverrideLexer.EQUAL)
    for index in range(len(tokens) - 2, start, -1):
        before, token, after = tokens[index - 1 : index + 2]
        opened = index == start + 1 or before.type in _BEFORE_A_VALUE
        if opened and token.type in _LITERALS and after.type in _AFTER_A_VALUE:
            word = f"{word[: token.start]}'{token.text}'{word[token.stop + 1 :]}"
    return word


def listed_beside_groups(words: Sequence[str], is_group: Callable[[str], bool]) -> list[str]:
    """The overrides, with a key of a group whose choices are swept as a list of one value.

    Hydra composes the command without the list of choices: `architecture.bandwidth=1` would be refused there,
    as the default architecture has no such key.
    """
    overrides = {word: parsed(word) for word in words}
    lists = {word for word, one in overrides.items() if isinstance(one, Override) and one.is_sweep_override()}
    swept = {key for word in lists if is_group(key := key_of(word))}
    return [
        f"{word.partition('=')[0]}=choice({word.partition('=')[2]})"
        if word not in lists and "." in key_of(word) and key_of(word).partition(".")[0] in swept
        else word
        for word in words
    ]


def _tokens(word: str) -> Sequence[Any]:
    """Hydra's tokens of an override, the end of the text included, without spaces before it."""
    lexer = OverrideLexer(InputStream(word))
    lexer.removeErrorListeners()
    lexer.addErrorListener(HydraErrorListener())
    stream = CommonTokenStream(lexer)
    stream.fill()
    *tokens, end = stream.tokens
    while tokens and tokens[-1].type == OverrideLexer.WS:
        tokens.pop()
    return [*tokens, end]


def parsed(word: str) -> Override | Exception:
    """An override, parsed, or the error of Hydra's grammar."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError, RecursionError) as error:
        return error
    return override


def values_of(override: Override) -> list[Any]:
    """The values of an override: those of its list, or its only one."""
    if not override.is_sweep_override():
        return [override.value()]
    return [value.text if isinstance(value, QuotedString) else value for value in override.sweep_iterator()]


def quoted(value: str) -> str:
    """A text as a value of Hydra's grammar."""
    return QuotedString(value, Quote.double).with_quotes()


def how_to_quote(word: str) -> str | None:
    """An override that Hydra's grammar refuses, quoted for it and for the shell; None if that is not why.

    A comma list stays one, each value in quotes.
    """
    match = _KEY.fullmatch(word)
    if match is None or match[2].startswith(("[", "{")):
        return None
    key, value = match.groups()
    values = value.split(",") if not set(value) & {"'", '"'} else [value]
    override = f"{key}={','.join(quoted(one.strip()) for one in values)}"
    return None if isinstance(parsed(override), Exception) else shlex.quote(override)
