"""SAEs on the Hugging Face hub: SAELens's releases by name, and any folder of any repository."""

import difflib
import functools
import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sae_sweep.config import SaeSweepError, first_line

_TABLE = Path(__file__).with_name("releases.json")
_MOST_NAMES = 30
"""SAEs of a release that are named in a message."""


@dataclass(frozen=True)
class HubSAE:
    """A folder on the hub."""

    repo: str
    """Repository, `owner/name`."""
    folder: str = ""
    """Folder inside it; empty for the repository itself."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys that SAELens's list changes in the config."""
    scale: float | None = None
    """What inputs are multiplied by, for an SAE that expects them at another average norm."""


def named(text: str) -> HubSAE:
    """The SAE that a text names: `RELEASE/NAME` of SAELens, or `owner/repository/folder`.

    Raises:
        SaeSweepError: if it is neither; with the names of the release, or with similar releases.
    """
    release, _, name = text.rstrip("/").partition("/")
    if known := _releases().get(release):
        if name not in known["folders"]:
            names = list(known["folders"])
            shown = ", ".join(names[:_MOST_NAMES])
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise SaeSweepError(f"{text}: the release {release} has {shown}{more}; write {release}/NAME")
        scale = known["scales"].get(name)
        return HubSAE(known["repo"], known["folders"][name], known["changes"], scale)
    parts = text.rstrip("/").split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise SaeSweepError(
            f"{text}: there is no such folder, and it is no name on the hub either, as RELEASE/NAME of "
            f"SAELens or owner/repository/folder{_similar(text)}"
        )
    return HubSAE("/".join(parts[:2]), "/".join(parts[2:]))


def download(sae: HubSAE, names: Sequence[str]) -> Path:
    """The local folder of an SAE on the hub, after downloading the files that the hub's cache lacks.

    Args:
        sae: which folder.
        names: files that may be in it; others are left where they are.

    Raises:
        SaeSweepError: if the hub has no such repository or folder, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    failures: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    inside = PurePosixPath(sae.folder)
    files = [str(inside / name) for name in names]
    runs = [str(above / "config.json") for above in inside.parents]  # there sparsify describes the run
    try:
        root = Path(snapshot_download(sae.repo, allow_patterns=[glob.escape(name) for name in files + runs]))
    except RepositoryNotFoundError as error:
        raise SaeSweepError(
            f"{sae.repo}: no such folder here, and no such repository on the hub that you can access"
            f"{_similar(sae.repo)}"
        ) from error
    except failures as error:
        include = f" --include '{inside}/*'" if sae.folder else ""
        raise SaeSweepError(
            f"cannot get {sae.repo} from the Hugging Face hub ({first_line(error)}). Offline, give a folder; "
            f"or fill the hub's cache while online: hf download {sae.repo}{include}{_similar(sae.repo)}"
        ) from error
    if not any((root / name).exists() for name in files):
        raise SaeSweepError(
            f"{sae.repo} on the hub, or its copy here, has no SAE in {sae.folder or 'its main folder'}: none "
            f"of {', '.join(names)}"
        )
    return root / sae.folder


@functools.cache
def _releases() -> dict[str, Any]:
    """SAELens's releases by name, as `tools/saelens_releases.py` writes them."""
    return dict(json.loads(_TABLE.read_text(encoding="utf-8"))["releases"])


def _similar(text: str) -> str:
    found = difflib.get_close_matches(text.split("/")[0], _releases(), cutoff=0.7)
    return f"; SAELens has the releases {', '.join(found)}" if found else ""
