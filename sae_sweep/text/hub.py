"""Text in Parquet files on the Hugging Face hub, streamed with the `datasets` library."""

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_sweep.config import HubDataset, SaeSweepError, first_line
from sae_sweep.text.source import Place, TextSource, text_number


class HubParquet(TextSource):
    """Documents of Parquet shards, with one shard per unit.

    If the hub cannot be reached, shards are read from its cache on this disk. Resuming inside a shard starts
    at the row group it stopped in, or the one before.
    """

    def __init__(self, dataset: HubDataset, _cache: Path) -> None:
        super().__init__(f"{dataset.path}@{dataset.revision}", dataset.exhausted)
        self._dataset = dataset
        self._shards = list_shards(dataset)

    @staticmethod
    def fingerprint(dataset: HubDataset, _cache: Path) -> str:
        """Combine repository, revision and file pattern; needs no network."""
        return f"{dataset.path}@{dataset.revision}:{dataset.files}"

    @property
    def units(self) -> int:
        return len(self._shards)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        for row, text, state in self._rows(unit, place):
            if not self._held_out(text):
                yield text, {"row": row + 1, "state": state}

    def held_out(self) -> Iterator[str]:
        for unit in range(self.units):
            yield from (text for _, text, _ in self._rows(unit, None) if self._held_out(text))

    def _held_out(self, text: str) -> bool:
        return text_number(text) % self._dataset.held_out_every == 0

    def _rows(self, unit: int, place: Place) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield (row within the shard, text, loader state after it)."""
        with self._hub_errors(self._shards[unit]):
            examples = self._open(unit)
            if place:
                examples.load_state_dict(place["state"])
            for row, example in enumerate(examples, place["row"] if place else 0):
                yield row, example[self._dataset.text_key] or "", examples.state_dict()

    def _open(self, unit: int) -> Any:
        key, shard = self._dataset.text_key, self._shards[unit]
        examples = _load_shard(shard, [key])
        if key not in examples.features:
            names = " or ".join(_load_shard(shard).features)
            raise SaeSweepError(f"{shard} has no column {key!r}: set dataset.text_key, to {names}")
        # row groups become the library's shards: restoring a position then skips them without reading
        return examples.reshard()

    @contextmanager
    def _hub_errors(self, shard: str) -> Iterator[None]:
        """Raise the errors of pyarrow and the hub client as SaeSweepError."""
        import pyarrow as pa

        try:
            yield
        except pa.ArrowInvalid as error:
            raise SaeSweepError(f"{shard} is not a readable Parquet file: {first_line(error)}") from error
        except hub_failures() as error:
            raise unreachable(self._dataset, error) from error


def _load_shard(shard: str, columns: list[str] | None = None) -> Any:
    from datasets import load_dataset

    files = {"train": [shard]}
    return load_dataset("parquet", data_files=files, split="train", streaming=True, columns=columns)


def list_shards(dataset: HubDataset) -> list[str]:
    """Return the sorted addresses of the shards: on the hub, or in its cache if the hub cannot be reached.

    Raises:
        SaeSweepError: if there are none, or neither the hub nor its cache has them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        # not list_repo_files, which retries for half a minute if nobody answers
        info = HfApi().dataset_info(dataset.path, revision=dataset.revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise SaeSweepError(
            f"the hub has no dataset {dataset.path} at revision {dataset.revision} that you can access"
        ) from error
    except hub_failures() as error:
        cached = cached_shards(dataset)
        if not cached:
            raise unreachable(dataset, error) from error
        return cached
    names = [file.rfilename for file in info.siblings or ()]
    found = sorted(name for name in names if fnmatch.fnmatchcase(name, dataset.files))
    if not found or not all(name.endswith(".parquet") for name in found):
        raise SaeSweepError(
            f"{dataset.path}@{dataset.revision}: no Parquet files match dataset.files={dataset.files}; "
            "the Parquet that the hub makes of other formats is at dataset.revision=refs/convert/parquet"
        )
    return [f"hf://datasets/{dataset.path}@{dataset.revision}/{name}" for name in found]


def cached_shards(dataset: HubDataset) -> list[str]:
    """Return the sorted paths of the shards that `hf download` has put into the hub's cache on this disk."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            dataset.path, repo_type="dataset", revision=dataset.revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return []
    files = (file for file in Path(folder).rglob("*.parquet") if file.is_file())
    names = (file.relative_to(folder).as_posix() for file in files)
    return [str(Path(folder) / name) for name in sorted(names) if fnmatch.fnmatchcase(name, dataset.files)]


def hub_failures() -> tuple[type[Exception], ...]:
    """Return what the hub library raises if it gets no answer: OSError and errors of its HTTP client."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)


def unreachable(dataset: HubDataset, error: Exception) -> SaeSweepError:
    """Return the one-line error for a hub that does not answer, with the ways to work offline."""
    cause = first_line(error)
    return SaeSweepError(
        f"cannot read {dataset.path} at {dataset.revision} from the Hugging Face hub ({cause}). Offline, use "
        "dataset=stdlib_docs or another embedded corpus, or dataset=files dataset.path=FOLDER; or fill the "
        f"hub's cache while online: hf download {dataset.path} --repo-type dataset "
        f"--revision {dataset.revision} --include '{dataset.files}'"
    )
