"""The files of a language model: where they are, their download, and their fingerprint. Needs no torch."""

import dataclasses
import hashlib
from pathlib import Path

from sae_sweep.config import SYNTHETIC, ModelConfig, SaeSweepError, expanded, first_line
from sae_sweep.store import regular

BUNDLED = "bundled:"
ASSETS = Path(__file__).parents[1] / "assets"

_DOWNLOADED = ["*.json", "*.txt", "*.model", "*.safetensors"]
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")


def local_path(model: ModelConfig) -> Path | None:
    """Return the folder or .gguf file that `model.path` names; None if it is on the hub, or synthetic.

    Raises:
        SaeSweepError: if it is a path on this disk and nothing is there.
    """
    if model.path == SYNTHETIC:
        return None
    if model.path.startswith(BUNDLED):
        folder = ASSETS / model.path.removeprefix(BUNDLED)
        if folder.is_dir():
            return folder
        have = ", ".join(sorted(BUNDLED + path.name for path in ASSETS.glob("*/"))) or "none"
        raise SaeSweepError(f"model.path={model.path}: no such bundled model; there is {have}")
    path = expanded(model.path)
    if path.exists():
        return path
    if path.suffix == ".gguf" or path.is_absolute() or model.path.startswith((".", "~")):
        raise SaeSweepError(f"model.path={model.path}: no such file or folder")
    return None


def download(model: ModelConfig) -> Path:
    """Return the local folder of a hub model, after downloading the files that the hub's cache lacks.

    Raises:
        SaeSweepError: if the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    revision = model.hub_revision
    try:
        folder = Path(snapshot_download(model.path, revision=revision, allow_patterns=_DOWNLOADED))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(model.path, revision=revision, allow_patterns=["*.bin"])
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise SaeSweepError(
            f"model.path={model.path}: no such file or folder here, and no such model on the hub "
            f"(revision {revision}) that you can access"
        ) from error
    except (OSError, ValueError) as error:
        raise SaeSweepError(
            f"cannot get {model.path} from the Hugging Face hub ({first_line(error)}). Offline, use "
            "model=gpt2-pico, which is bundled, or model.path=FOLDER; or fill the hub's cache while online: "
            f"hf download {model.path} --revision {revision}"
        ) from error
    return folder


def on_disk(model: ModelConfig) -> ModelConfig:
    """Return a hub model as its folder in the hub's cache if its config is there, else the model itself."""
    if local_path(model) is not None:
        return model
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except ValueError:  # no name of a repository
        return model
    if not isinstance(found, str):
        return model
    return dataclasses.replace(model, path=str(Path(found).parent), name=model.label)


def weights_fingerprint(model: ModelConfig) -> str:
    """Identify the content of a model's weights, tokenizer and config.

    Local files are hashed. A hub model is identified by repository and revision, without network access.
    """
    path = local_path(model)
    if path is None:
        return f"{model.path}@{model.hub_revision}"
    whole = hashlib.sha256()
    try:
        files = sorted(filter(_is_hashed, path.iterdir())) if path.is_dir() else [path]
        for file in files:
            whole.update(file.name.encode() if path.is_dir() else b"")
            whole.update(_digest(file))
    except OSError as error:
        where = f"{error.filename}: {error.strerror}"
        raise SaeSweepError(f"cannot read model.path={model.path} ({where}): give another copy") from error
    return whole.hexdigest()[:16]


def same_model(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two configs name the same weights and tokenizer, wherever they are.

    Raises:
        SaeSweepError: if a file of theirs cannot be read.
    """
    if (one.path, one.hub_revision) == (other.path, other.hub_revision):
        return True
    return weights_fingerprint(one) == weights_fingerprint(other)


def _digest(file: Path) -> bytes:
    with regular(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _is_hashed(file: Path) -> bool:
    return file.suffix in _WEIGHTS or file.name in ("config.json", *_TOKENIZER)
