"""The SAEs that `task=analyse` reads: those of a sweep, of one run, or of any folder or release."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sae_sweep.config import (
    CommandConfig,
    ConfigError,
    ModelConfig,
    RunConfig,
    SaeSweepError,
    escaped,
    expanded,
)
from sae_sweep.config.names import LONGEST_NAME, made_plain, unquoted
from sae_sweep.config.pasted import override
from sae_sweep.plan import Request
from sae_sweep.report.analysis_files import analysis_owner
from sae_sweep.report.formatting import listed
from sae_sweep.saes import SAE, load_sae, open_sae, tensors_checksum
from sae_sweep.store import (
    PlannedRun,
    RunFolder,
    SweepFolder,
    find_sweep,
    planned_run,
    read_plan,
    read_shown_status,
    unreadable,
    without_start,
)

log = logging.getLogger(__name__)

_OTHERS = "analysed"
"""Folder below `paths.output` of what is found out about SAEs that are no runs, unless `sweep` names one."""
_MOST_NAMED = 2
"""Names that are left out for the same reason, which a line has before it counts the others."""
_OWNER_CHARS = 8
"""Characters of an SAE's checksum that tell it from another of the same name."""


@dataclass(frozen=True)
class Analysed:
    """An SAE, the model and the text that its features are analysed on, and the folder of what is found."""

    name: str
    owner: str
    """Id of the run; of another SAE a checksum of its weights."""
    config: RunConfig
    """Model, text and packing, and the layer that the SAE reads."""
    folder: RunFolder
    load: Callable[[], SAE]
    run: PlannedRun | None = None
    """None for an SAE that is no run."""
    trained: int | None = None
    """Tokens per sequence in training; None if unknown."""

    @property
    def content(self) -> Mapping[str, str]:
        """Fingerprints of the text and the model that it was trained on; none if they are unknown."""
        return {} if self.run is None else without_start(self.run.fingerprints)


def left_out_lines(left_out: Mapping[str, SaeSweepError]) -> list[str]:
    """What is left out and why, a line per reason, from reasons by name."""
    reasons: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reasons.setdefault(str(why), []).append(name)
    lines = []
    for reason, names in reasons.items():
        rest = len(names) - _MOST_NAMED
        told = names if rest <= 1 else [*names[:_MOST_NAMED], f"{rest} more"]
        lines.append(f"{listed(told)} {'is' if len(names) == 1 else 'are'} left out: {reason}")
    return lines


@dataclass
class Selection:
    """The SAEs of a command."""

    sweep: SweepFolder
    """Holds their folders, and the results over all of them."""
    saes: list[Analysed] = field(default_factory=list)
    left_out: dict[str, SaeSweepError] = field(default_factory=dict)
    """Why, by name."""


def selected(request: Request) -> Selection:
    """Find the SAEs that the command names with `sae` or with `sweep`.

    Raises:
        SaeSweepError: if there are none, or `sae` is a whole sweep or cannot be looked into.
    """
    command = request.command
    if command.sae is None:
        return finished_of(find_sweep(command))
    run = run_at(command.sae, "sae")
    if run is not None:
        return finished_of(run.sweep, only=run.name)
    return _other(command, command.sae, request.runs[0].config)


def runs_selected(command: CommandConfig) -> Selection:
    """Find the runs that the command names with `sae` or with `sweep`.

    Raises:
        SaeSweepError: if there are none, or `sae` is no run.
    """
    if command.sae is None:
        return finished_of(find_sweep(command))
    run = run_at(command.sae, "sae")
    if run is None:
        raise SaeSweepError(
            f"sae={command.sae}: task={command.task} takes runs: name the folder of one, or give sweep=NAME"
        )
    return finished_of(run.sweep, only=run.name)


class RunAt(NamedTuple):
    """A run of a sweep on disk."""

    sweep: SweepFolder
    name: str

    def planned(self) -> PlannedRun:
        """The run, if it is finished.

        Raises:
            SaeSweepError: if it is not, or a file is damaged.
        """
        for record in read_plan(self.sweep)["runs"]:
            folder = self.sweep.run(record["name"])
            if record["name"] == self.name and read_shown_status(folder, record["id"]).state == "done":
                return planned_run(record, self.sweep)
        raise _unfinished(f"{self.sweep.root / self.name}: it")


def run_at(named: str, key: str) -> RunAt | None:
    """The run that a person names by its folder, or the `sae/` in it; None for an SAE of another origin.

    Raises:
        SaeSweepError: if it is a whole sweep, or cannot be looked into.
    """
    path = expanded(named).absolute()
    run = path.parent if path.name == "sae" else path
    sweep = SweepFolder(run.parent)
    try:
        is_run = (run / "status.json").is_file() and sweep.plan.is_file()
        is_sweep = SweepFolder(path).plan.is_file()
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise unreadable(path, error) from error
    if is_sweep:
        instead = f", or give {override('sweep', path.name)}" if key == "sae" else f" as {key}"
        raise SaeSweepError(f"{path} is a sweep: name one of its runs{instead}")
    return RunAt(sweep, run.name) if is_run else None


def _unfinished(which: str) -> SaeSweepError:
    return SaeSweepError(f"{which} is finished yet; task=status shows how far it is")


def finished_of(sweep: SweepFolder, only: str | None = None) -> Selection:
    """The finished runs of a sweep, or one of them."""
    found = Selection(sweep)
    for record in read_plan(sweep)["runs"]:
        if only not in (None, record["name"]):
            continue
        try:
            if read_shown_status(sweep.run(record["name"]), record["id"]).state == "done":
                found.saes.append(_of_run(planned_run(record, sweep)))
        except SaeSweepError as error:
            found.left_out[record["name"]] = error
    if not found.saes and not found.left_out:
        which = f"{sweep.root}: no run" if only is None else f"{sweep.root / only}: it"
        raise _unfinished(which)
    return found


def _of_run(run: PlannedRun) -> Analysed:
    return Analysed(
        run.name,
        run.run_id,
        run.config,
        run.folder,
        lambda: load_sae(run.folder.sae, run.run_id),
        run,
        run.config.packing.seq_len,
    )


def _other(command: CommandConfig, named: str, config: RunConfig) -> Selection:
    """An SAE of another origin, on the command's model and text, at the layer that its files name."""
    sae, origin = open_sae(named)
    if origin.layer is None:
        log.warning(
            "%s: its files do not say which residuals it reads; taken are those of layer=%d",
            named,
            config.layer,
        )
    if origin.model is not None and plain_model(origin.model) not in _names(config.model):
        log.warning(
            "%s: its files say model %s, and this is %s", named, escaped(origin.model), config.model.label
        )
    try:
        config = config if origin.layer is None else replace(config, layer=origin.layer)
    except ConfigError as error:
        raise SaeSweepError(f"{named}, as its files say: {error}") from error
    sweep = SweepFolder(expanded(command.paths.output).absolute() / (command.sweep or _OTHERS))
    owner = tensors_checksum(dict(sae.state_dict()))
    name = _free_name(sweep, label_of(named), owner)
    one = Analysed(name, owner, config, sweep.run(name), lambda: sae, trained=origin.context)
    return Selection(sweep, [one])


def _names(model: ModelConfig) -> set[str]:
    return {plain_model(model.label), plain_model(model.path)}


def plain_model(name: str) -> str:
    """A model's name as it is compared; the hub's `openai-community/gpt2` is SAELens's `gpt2-small`."""
    last = name.rsplit("/", 1)[-1].lower()
    return "gpt2-small" if last == "gpt2" else last


def label_of(named: str) -> str:
    """A folder's name from the end of a path: its last two parts."""
    parts = [part for part in named.split("/") if part not in ("", ".", "..", "~")]
    parts = parts or [part for part in expanded(named).absolute().resolve().parts if part != "/"]
    label = made_plain(unquoted("_".join(parts[-2:])))
    return label.encode()[-(LONGEST_NAME - _OWNER_CHARS - 1) :].decode(errors="ignore") or "sae"


def _free_name(sweep: SweepFolder, label: str, owner: str) -> str:
    """The label; where it has what was found about another SAE, the label and the start of the owner."""
    try:
        found = analysis_owner(sweep.run(label).features)
    except SaeSweepError:  # damaged: it is written again
        found = None
    return label if found in (None, owner) else f"{label}_{owner[:_OWNER_CHARS]}"
