"""What a trial came to."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trials.commands import Ended
from trials.sweeps import results

GOOD = ("right", "one line")
BAD = ("traceback", "silently wrong", "hang", "litter", "spread", "unclear", "no verdict")
"""traceback: also a crash. silently wrong: exit 0, another result. litter: half-written files or processes
stay. spread: a fault of one run concerns others. unclear: the message names neither file nor key, or is no
line. no verdict: the trial itself failed."""
OUTCOMES = (*GOOD, *BAD)

_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d |sae_sweep: |$")
_TEMPORARY = re.compile(r"\.sae_sweep-.+|\..+\.lock\.soft\.[0-9a-f]{8}")
"""Names of unfinished files, of folders in which a compiler works, and of markers on their way out."""


class Verdict(NamedTuple):
    """Outcome of a trial, and what was seen."""

    outcome: str
    detail: str


class Undisturbed(NamedTuple):
    """What a command does to an undamaged sweep."""

    code: int
    out: str
    results: Mapping[str, Any]


def crash(ended: Ended, folder: Path, but: Collection[Path] = ()) -> Verdict | None:
    """The verdict on a command that hung, crashed, or left something behind (files `but` some); else None."""
    if ended.code is None:
        return Verdict("hang", last_line(ended.err))
    if ended.code < 0:
        return Verdict("traceback", f"killed by signal {-ended.code}: {last_line(ended.err)}")
    for text in (ended.out, ended.err, *_logs(folder)):
        if "Traceback (most recent call last)" in text:
            return Verdict("traceback", last_line(text.partition("Traceback (most")[2]))
    left = [*ended.left, *half_written(folder, but)]
    return Verdict("litter", ", ".join(left)) if left else None


def _logs(folder: Path) -> Iterable[str]:
    for path in (*folder.glob("multirun/*/*/train.log"), *folder.glob("multirun/*/jobs/*.log")):
        if path.is_file():
            yield path.read_text(errors="replace")


def half_written(folder: Path, but: Collection[Path] = ()) -> list[str]:
    """Temporary files below a folder, but some."""
    found = [path for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    known = {above for path in but for above in (path, *path.parents)}
    return [str(path.relative_to(folder)) for path in found if path not in known]


def judge(
    ended: Ended,
    folder: Path,
    expected: Undisturbed,
    *,
    names: Collection[str],
    run: str | None = None,
    untouched: str = "",
) -> Verdict:
    """Judge a command on a damaged sweep.

    Args:
        ended: how the command ended.
        folder: the copy that it worked in.
        expected: what it does without the damage.
        names: words of which a message must contain one: the file's name, or a key.
        run: the run that the damage may concern, if it may not concern others.
        untouched: path of the damaged file below `multirun`, if the command left it as it was: what counts
            is what the command made of it.
    """
    wrong = crash(ended, folder)
    if wrong is not None:
        return wrong
    now = results(folder / "multirun")
    other = differences(now, expected.results, but=untouched)
    said = [line for line in (ended.err + ended.out).splitlines() if any(name in line for name in names)]
    if ended.code == expected.code and not other and told(ended.out) == told(expected.out):
        return Verdict("right", "")
    if ended.code in (0, expected.code) and not said:
        return Verdict("silently wrong", f"{other or 'output'} differ: {last_line(ended.err)}")
    stray = stray_line(ended.err)
    if stray or not said:
        return Verdict("unclear", stray or last_line(ended.err))
    of_all = ("analysis", "plan.json", "runs.parquet")
    beyond = [name for name in other if name.split("/")[1] not in (run, *of_all)]
    if run is not None and beyond:
        return Verdict("spread", f"{beyond}: {said[0]}")
    return Verdict("one line", said[0])


def differences(now: Mapping[str, Any], expected: Mapping[str, Any], but: str = "") -> list[str]:
    """Paths whose content differs, or that only one of the two has."""
    return sorted(
        name for name in now.keys() | expected.keys() if name != but and now.get(name) != expected.get(name)
    )


def told(out: str) -> str:
    """What a command printed, without the places of its files: they depend on the working directory."""
    return out.partition("\nFiles\n")[0]


def stray_line(errors: str) -> str | None:
    """The first line of standard error that is neither of the log nor a problem."""
    return next((line for line in errors.splitlines() if not _LOG_LINE.match(line)), None)


def last_line(text: str) -> str:
    """The last line of a text, which says most."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing was said")[:300]
