"""The door to SAEs on disk, whoever wrote them."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config import SaeSweepError, expanded
from sae_sweep.saes import hub
from sae_sweep.saes.base import SAE
from sae_sweep.saes.dictionary_learning import read_dictionary_learning
from sae_sweep.saes.disk import CONFIG_FILE, REMEDY, WEIGHTS_FILE, read_own, saved_by
from sae_sweep.saes.foreign import ForeignSAE, Origin, explained
from sae_sweep.saes.saelens import read_saelens, saelens_origin
from sae_sweep.saes.sparsify import read_sparsify
from sae_sweep.saes.study_files import read_study
from sae_sweep.saes.tensor_files import read_safetensors
from sae_sweep.store import read_json, unreadable

log = logging.getLogger(__name__)

_GET_AGAIN = "get the file again"
_MOST_NAMES = 8
"""Files of a folder that are named in a message."""


class _Layout(NamedTuple):
    """Two files by which a library's SAE is known, and how they are read."""

    config: str
    weights: str
    library: str
    read: Callable[[Path, Path, str], tuple[SAE, Origin]]

    def there(self, folder: Path) -> bool:
        return all((folder / name).exists() for name in (self.config, self.weights))


def _read_saelens_layout(config: Path, weights: Path, remedy: str) -> tuple[SAE, Origin]:
    """An SAE of this package or of SAELens, which share the layout."""
    folder, cfg = config.parent, read_json(config, remedy)
    if _is_saelens(cfg):
        return read_saelens(cfg, read_safetensors(weights, remedy), folder), saelens_origin(cfg, folder)
    return read_own(folder, cfg), saelens_origin(cfg, folder, "sae_sweep")


_LAYOUTS = (
    _Layout(CONFIG_FILE, WEIGHTS_FILE, "sae_sweep and SAELens", _read_saelens_layout),
    _Layout("cfg.json", "sae.safetensors", "sparsify", read_sparsify),
    _Layout("config.json", "ae.pt", "dictionary_learning", read_dictionary_learning),
    _Layout("config.json", "sae.pt", "the study's trainer", read_study),
)


def load_sae(path: Path | str, run_id: str | None = None) -> SAE:
    """Load an SAE that `save_sae` wrote, bit for bit, or one of another library; on the CPU.

    Args:
        path: a run folder, the `sae/` folder inside it, or a folder of SAELens, sparsify, dictionary_learning
            or the study's trainer; or, on the Hugging Face hub, `hf:USER/REPO/FOLDER` or `hf:RELEASE/NAME`.
        run_id: refuse an SAE that is not this run's.

    Raises:
        SaeSweepError: if a file is missing, damaged, or describes no SAE that can be read, or another run's.
    """
    if run_id is None:
        on_hub = str(path).startswith(hub.PREFIX)
        sae, _ = _read_hub(hub.named(str(path))) if on_hub else read_folder(expanded(str(path)))
        _warn(sae)
        return sae
    folder = _folder_of_run(expanded(str(path)))
    cfg = read_json(folder / CONFIG_FILE, REMEDY)
    if (owner := saved_by(folder)) not in (None, run_id):
        raise SaeSweepError(f"{folder} holds the SAE of run {owner}, not of {run_id}; {REMEDY}")
    return read_own(folder, cfg)


def open_sae(text: str, *, to_train: bool = False) -> tuple[SAE, Origin]:
    """Load the SAE that a person names, with what it reads; on the CPU.

    Args:
        text: a folder as for `load_sae`; if neither it nor the folder above it is here, a name on the Hugging
            Face hub: `RELEASE/NAME` of SAELens (`gpt2-small-res-jb/blocks.8.hook_resid_pre`), or
            `owner/repository/folder`; with `hf:` before it, no folder here is looked for.
        to_train: leave out what only a reader of its features should know.

    Raises:
        SaeSweepError: as `load_sae`; if there is no such name, or the hub cannot be reached; or if the SAE
            reads other activations than the residual stream between two blocks.
    """
    path, on_hub = expanded(text), text.startswith(hub.PREFIX)
    local = not on_hub and (path.is_absolute() or text.startswith((".", "~")) or _is_here(path))
    sae, origin = read_folder(path) if local else _read_hub(hub.named(text))
    if origin.hook is not None and origin.layer is None:
        raise SaeSweepError(
            f"{origin.folder}: this SAE of {origin.layout} reads {origin.hook!r}; only the residual stream "
            "before a block (resid_pre of a layer, or resid_post of the one before) can be read here"
        )
    if not to_train:
        _warn(sae)
    return sae, origin


def _warn(sae: SAE) -> None:
    if isinstance(sae, ForeignSAE) and sae.caveat:
        log.warning(sae.caveat)


def _is_here(path: Path) -> bool:
    """Whether a path names something on this disk: it is there, or a folder that would hold it is."""
    try:
        return path.exists() or (path.parent != Path() and path.parent.is_dir())
    except OSError as error:  # a name that is too long
        raise unreadable(path, error) from error


def _read_hub(place: hub.HubSAE) -> tuple[SAE, Origin]:
    files = {name: None for one in _LAYOUTS for name in (one.config, one.weights)}
    folder = hub.download(place, list(files))
    if not place.changes and place.scale is None:
        return read_folder(folder)
    with explained(folder):
        cfg = {**read_json(folder / CONFIG_FILE, _GET_AGAIN), **place.changes}
    weights = read_safetensors(folder / WEIGHTS_FILE, _GET_AGAIN)
    return read_saelens(cfg, weights, folder, place.scale), saelens_origin(cfg, folder)


def read_folder(path: Path) -> tuple[SAE, Origin]:
    """The SAE of a folder, or of the `sae/` folder inside it, and where it comes from.

    Raises:
        SaeSweepError: saying what is there and which layouts are known, if it holds none; or if a file is
            damaged or describes no SAE that can be read.
    """
    try:
        for folder in (path, path / "sae"):
            found = [layout for layout in _LAYOUTS if layout.there(folder)]
            if len(found) > 1:
                raise SaeSweepError(
                    f"{folder} holds several SAEs, of {' and of '.join(one.library for one in found)}: move "
                    "the files of all but one to other folders"
                )
            if found:
                config, weights, library, read = found[0]
                remedy = REMEDY if library.startswith("sae_sweep") else _GET_AGAIN
                return read(folder / config, folder / weights, remedy)
        inner = path / "sae" if (path / "sae").is_dir() else path
        raise SaeSweepError(f"no SAE in {inner}: {_contents(inner)}; known are {_known()}")
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise unreadable(path, error) from error


def _contents(path: Path) -> str:
    if not path.is_dir():
        return "it is a file, not a folder" if path.exists() else "there is no such folder"
    inside = list(path.iterdir())
    if not inside:
        return "it is empty"
    saes = [one.name for one in inside if any(layout.there(one) for layout in _LAYOUTS)]
    found = f"; there are SAEs in its folders {_listed(saes)}" if saes else ""
    return f"it holds {_listed(one.name + '/' * one.is_dir() for one in inside)}{found}"


def _listed(names: Iterable[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in sorted(names)]
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return f"{', '.join(shown[:_MOST_NAMES])}{more}"


def _known() -> str:
    return ", ".join(f"{one.config} with {one.weights} ({one.library})" for one in _LAYOUTS)


def _folder_of_run(path: Path) -> Path:
    try:
        for folder in (path, path / "sae"):
            if (folder / CONFIG_FILE).is_file():
                return folder
    except OSError as error:
        raise unreadable(path, error) from error
    raise SaeSweepError(f"no SAE in {path}: neither it nor its sae/ folder has a {CONFIG_FILE}")


def _is_saelens(cfg: Any) -> bool:
    """Whether a cfg.json is SAELens's own: without what this package adds."""
    if not isinstance(cfg, dict) or "d_sae" not in cfg:
        return False
    metadata = cfg.get("metadata")
    return metadata is None or (isinstance(metadata, dict) and "sae_sweep" not in metadata)
