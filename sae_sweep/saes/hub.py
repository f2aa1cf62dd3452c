"""SAEs on the Hugging Face hub: SAELens's releases by name, any folder of any repository, and uploads."""

import difflib
import functools
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sae_sweep.config import SaeSweepError, first_line

PREFIX = "hf:"
"""What a name starts with that is never a folder here."""
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
    """The SAE that a text names: `RELEASE/NAME` of SAELens, or `owner/repository/folder`; also after `hf:`.

    Raises:
        SaeSweepError: if it is neither; with the names of the release, or with similar releases.
    """
    never_here = text.startswith(PREFIX)
    text = text.removeprefix(PREFIX)
    release, _, name = text.rstrip("/").partition("/")
    if known := _releases().get(release):
        if name not in known["folders"]:
            names = list(known["folders"])
            shown = ", ".join(names[:_MOST_NAMES])
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise SaeSweepError(f"{text}: the release {release} has {shown}{more}; write {release}/NAME")
        scale = known["scales"].get(name)
        return HubSAE(known["repo"], known["folders"][name], known["changes"], scale)
    found = _folder_of_repository(text)
    if found is None:
        no_name = "no name on the hub" if never_here else "no name on the hub either"
        no_folder = "" if never_here else "there is no such folder, and "
        raise SaeSweepError(
            f"{text}: {no_folder}it is {no_name}, as RELEASE/NAME of SAELens or owner/repository/folder"
            f"{_similar(text)}"
        )
    return found


def destination(text: str) -> HubSAE:
    """The repository, and the folder in it, that `hf:USER/REPO[/FOLDER]` names.

    Raises:
        SaeSweepError: if it names none.
    """
    found = _folder_of_repository(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None
    if found is None:
        raise SaeSweepError(
            f"to={text}: name a repository on the hub, as to=hf:USER/REPO or to=hf:USER/REPO/FOLDER"
        )
    return found


def _folder_of_repository(text: str) -> HubSAE | None:
    parts = text.rstrip("/").split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        return None
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
    from huggingface_hub.errors import RepositoryNotFoundError

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
    except _failures() as error:
        include = f" --include '{inside}/*'" if sae.folder else ""
        raise SaeSweepError(
            f"cannot get {sae.repo} from the Hugging Face hub ({first_line(error)}). Offline, give a folder; "
            f"or fill the hub's cache while online: hf download {sae.repo}{include}{_similar(sae.repo)}"
        ) from error
    if not any((root / name).exists() for name in files):
        raise SaeSweepError(
            f"{sae.repo} on the hub, or its copy here, has no SAE in {sae.folder or 'its main folder'}: none "
            f"of {', '.join(names)}{_elsewhere(sae.repo, names)}"
        )
    return root / sae.folder


def upload(repo: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Upload files in one commit, so that all of them appear or none; a new repository is made if needed.

    Args:
        repo: `owner/name`.
        files: content or local file, by path in the repository.
        message: title of the commit.

    Returns the repository's address.

    Raises:
        SaeSweepError: if the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _explained_upload(repo):
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        address = api.create_repo(repo, exist_ok=True)
        api.create_commit(repo, operations, commit_message=message)
    return str(address)


def read_small(repo: str, names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names in a repository and its folders, by path; none if there is no repository.

    Raises:
        SaeSweepError: if the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explained_upload(repo):
        try:
            there = HfApi().list_repo_files(repo)
        except RepositoryNotFoundError:
            return {}
        wanted = [path for path in there if PurePosixPath(path).name in names]
        return {path: Path(hf_hub_download(repo, path)).read_bytes() for path in wanted}


@contextmanager
def _explained_upload(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except _failures() as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        remedy = (
            "log in with `hf auth login`, or set HF_TOKEN, to a token that may write there"
            if status in (401, 403)
            else "the same command tries again"
        )
        raise SaeSweepError(
            f"cannot publish to {repo} on the Hugging Face hub ({first_line(error)}): {remedy}"
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when the hub does not answer, or refuses."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)  # RuntimeError: hf_xet's


def _elsewhere(repo: str, names: Sequence[str]) -> str:
    """The folders of a repository that hold SAEs, for a message; empty if none or unknown."""
    from huggingface_hub import HfApi

    try:
        files = map(PurePosixPath, HfApi().list_repo_files(repo))
    except _failures():
        return ""
    weights = {name for name in names if not name.endswith(".json")}
    folders = sorted({str(file.parent) for file in files if file.name in weights})
    more = ", ..." if len(folders) > _MOST_NAMES else ""
    return f"; there are SAEs in {', '.join(folders[:_MOST_NAMES])}{more}" if folders else ""


@functools.cache
def _releases() -> dict[str, Any]:
    """SAELens's releases by name, as `tools/saelens_releases.py` writes them."""
    return dict(json.loads(_TABLE.read_text(encoding="utf-8"))["releases"])


def _similar(text: str) -> str:
    found = difflib.get_close_matches(text.split("/")[0], _releases(), cutoff=0.7)
    return f"; SAELens has the releases {', '.join(found)}" if found else ""
