"""The undisturbed sweeps that trials start from, fresh copies of them, and what is read from their files."""

import hashlib
import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from trials.commands import ROOT, Ended, command

ASSETS = ROOT / "sae_sweep" / "assets"
WORDS = (
    *("layer=2", "dictionary=1", "batch=256", "tokens=1_536", "sweep=s"),
    *("activations.buffer_tokens=1_024", "evaluation.tokens=768", "architecture=topk,batchtopk,jumprelu"),
    *("tracking=none", "tracking.log_every=2", "paths.cache=cache", "launcher.checkpoint_every_min=1e-9"),
)
"""Three small runs that are saved after each of their 6 steps."""
VARIANTS = {
    "files": (
        *("model=gpt2-pico", "model.path=model", "model.name=pico"),
        *("dataset=files", "dataset.path=text", "dataset.held_out_every=3"),
    ),
    "embedded": ("model=gpt2-pico", "dataset=stdlib_docs"),
}
"""A model and text in folders of the user; those that are bundled."""
_PNG = b"\x89PNG"
STATES = ("done", "cut")
_SAVES_BEFORE_CUT = {"files": 16, "embedded": 15}
"""Renames of checkpoints before the cut: in the group of all runs, or in the second of single runs."""
_VOLATILE = {
    *("time", "times", "seconds", "eval/seconds", "pid", "since", "age_s", "tokens_per_s", "eta_s"),
    *("lm", "job", "host", "log", "folder", "checksum", "history"),
}
"""Keys of records that differ between two equal runs: clocks, processes, who shared an LM pass, and
lengths and checksums of files that hold them."""


def words(variant: str, *more: str) -> list[str]:
    """The command of a sweep."""
    return [*WORDS, *VARIANTS[variant], *more]


def prepare(folder: Path) -> None:
    """Set this process up for its children: environment, compiler, quick figures and small corpora."""
    from matplotlib.figure import Figure

    from sae_sweep.text import embedded

    os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", HF_HUB_OFFLINE="1", HYDRA_FULL_ERROR="0")
    os.environ["CXX"] = str(_compiler(folder))
    os.environ["XDG_CACHE_HOME"] = str(folder / "home")  # nothing may be read from or written to the user's
    sources = _little_text()
    distributions = embedded.library_distributions()
    embedded.installed_sources = lambda _: sources
    embedded.library_distributions = lambda: distributions
    # Drawing takes a third of a command; what figures show is in tables, which are compared.
    Figure.savefig = _draw_nothing  # type: ignore[method-assign]


def _draw_nothing(self: object, file: Any, **keys: object) -> None:
    if hasattr(file, "write"):
        file.write(_PNG)
    else:
        Path(file).write_bytes(_PNG)


def build(folder: Path) -> None:
    """Make every sweep in `folder`, unless an earlier call has."""
    if (folder / "ready").exists():
        return
    for variant in VARIANTS:
        done, cut = folder / variant / "done", folder / variant / "cut"
        shutil.rmtree(folder / variant, ignore_errors=True)
        _write_text(done / "text")
        shutil.copytree(ASSETS / "gpt2-pico", done / "model", ignore=shutil.ignore_patterns("*.md", "*.png"))
        _must_be(0, command(words(variant, "task=cache"), done))
        shutil.copytree(done, cut)
        _must_be(0, command(words(variant), done))
        group = ["launcher.max_group=1"] if variant == "embedded" else []
        stop = at_event("os.rename", "state.safetensors", _SAVES_BEFORE_CUT[variant], _terminate)
        _must_be(143, command(words(variant, *group), cut, stop))
        _must_be(0, command(words(variant), cut, _freeze_only))
        assert list(cut.glob("multirun/s/*/checkpoint/before.safetensors")), "the cut came too early"
    (folder / "ready").touch()


def _freeze_only() -> None:
    """Let this process write the group for a job, instead of training it."""
    from sae_sweep.launch.frozen import freeze_group
    from sae_sweep.launch.inprocess import InProcess

    def train(self: InProcess, plan: Any, stop: Any) -> bool:
        freeze_group(plan, plan.runs)
        return False

    InProcess.train = train  # type: ignore[method-assign]


def _must_be(code: int, ended: Ended) -> None:
    if ended.code != code:
        raise SystemExit(f"an undisturbed command ended with {ended.code}:\n{ended.out}{ended.err}")


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def at_event(event: str, part: str, count: int, act: Callable[[], object]) -> Callable[[], None]:
    """A function that lets this process act at the `count`-th audit event of a path that contains `part`."""
    left = [count]

    def hook(name: str, values: tuple[Any, ...]) -> None:
        if left[0] > 0 and name == event and any(part in str(value) for value in values[:2]):
            left[0] -= 1
            if left[0] == 0:
                act()

    return lambda: sys.addaudithook(hook)


def fresh(source: Path, to: Path) -> Path:
    """Copy a sweep, with text and caches; large files that nobody writes in place are linked."""

    def copy(ours: str, theirs: str) -> None:
        if ours.endswith((".so", "model.safetensors")):
            os.link(ours, theirs)
        else:
            shutil.copy2(ours, theirs)

    shutil.copytree(source, to, copy_function=copy, symlinks=True)
    return to


def results(folder: Path) -> dict[str, Any]:
    """What a person or a later command believes of the files below `folder`, by path."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix not in (".png", ".log") and path.is_file() and ".lock" not in path.name:
            found[name] = content(path)
        elif path.name == "checkpoint" and any(
            path.glob("*.safetensors")
        ):  # a stranger's file keeps the folder
            found[name] = "there"
    return {
        name: value for name, value in found.items() if "/checkpoint/" not in name and "jobs/" not in name
    }


def content(path: Path) -> Any:
    """What a file says, without clocks; None if there is no file."""
    if not path.is_file():
        return None
    if path.name == "report.html":  # holds clocks, compressed, and what the other files say
        return "there"
    whole = path.read_bytes()
    with suppress(ValueError, RecursionError):
        if path.suffix == ".json":
            return without_clocks(json.loads(whole))
        if path.suffix == ".jsonl":
            return [without_clocks(json.loads(line)) for line in whole.splitlines()]
        if path.name == "runs.parquet":  # holds seconds
            return without_clocks(parquet.read_table(pyarrow.BufferReader(whole)).to_pylist())
    return hashlib.sha256(whole).hexdigest()


def without_clocks(value: Any) -> Any:
    """The value without keys that differ between equal runs; numbers as text, so that NaN equals NaN."""
    if isinstance(value, Mapping):
        return {key: without_clocks(inner) for key, inner in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [without_clocks(inner) for inner in value]
    return repr(value)


def _write_text(folder: Path) -> None:
    """Forty documents, some of them held out."""
    folder.mkdir(parents=True)
    for number, (_, text) in enumerate(_little_text()["stdlib"][:40]):
        (folder / f"{number:02}.txt").write_text(text[:4_000], encoding="utf-8")


def _little_text() -> dict[str, list[tuple[str, str]]]:
    """Source files for the embedded corpora: as many as the small sweeps read."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted([*root.glob("*.py")])[:90]
    pairs = [(file.name, file.read_text(encoding="utf-8")) for file in files]
    return {"stdlib": pairs[:75], "library": pairs[75:]}


def _compiler(folder: Path) -> Path:
    """A compiler that keeps what it has compiled, for trials that damage or remove the library."""
    script, kept = folder / "c++", folder / "compiled.so"
    real = shutil.which("c++") or shutil.which("g++") or "c++"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        script.write_text(
            "#!/bin/sh\n"
            f'case " $* " in *" --version "*) exec {real} --version;; esac\n'
            'take=; for word; do [ "$take" ] && to=$word && take=; [ "$word" = -o ] && take=1; done\n'
            f'[ -e {kept} ] || {{ {real} "$@" && cp "$to" {kept}.$$ && mv {kept}.$$ {kept}; exit; }}\n'
            f'exec cp {kept} "$to"\n'
        )
        script.chmod(0o755)
    return script
