"""Text on the Hugging Face hub: Parquet, streamed with the `datasets` library, or lines of JSON."""

import errno
import fnmatch
import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_sweep.config import HubDataset, SaeSweepError, first_line
from sae_sweep.signals import wait
from sae_sweep.text.formats import no_column
from sae_sweep.text.hub_lines import SUFFIXES, read_lines
from sae_sweep.text.rows import no_text
from sae_sweep.text.source import Place, TextSource, text_number

log = logging.getLogger(__name__)

WAITS_S = (5, 15, 30, 60, 120)
"""Seconds before each further try of a shard that could not be read: about six minutes, with the tries."""
_ROWS_AT_ONCE = 8192
"""Rows of a shard that are decoded together, of one row group at most."""
_TRY_AGAIN = (408, 429, *range(500, 600))
"""HTTP status codes of a hub that may answer later."""
_READABLE = (".parquet", *SUFFIXES)
_SILENCED = ("datasets", "huggingface_hub", "fsspec", "httpx", "httpx2", "httpcore", "urllib3")
"""Loggers of the libraries below, which write several lines for each of their own tries."""


class HubText(TextSource):
    """Documents of shards on the hub, with one shard per unit.

    If the hub cannot be reached, shards are read from its cache on this disk. Resuming inside a Parquet shard
    starts at the row group it stopped in, or the one before; lines of JSON are read up to the place again.
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
        """Yield (row within the shard, text, loader state after it); goes on where the hub broke off."""
        tries = 0
        while True:
            try:
                for row, text, state in self._try_rows(unit, place):
                    yield row, text, state
                    tries, place = 0, {"row": row + 1, "state": state}
                return
            except hub_failures() as error:
                self._wait_for_hub(unit, tries, error)
                tries += 1

    def _try_rows(self, unit: int, place: Place) -> Iterator[tuple[int, str, dict[str, Any]]]:
        if self._shards[unit].endswith(SUFFIXES):
            _leave_retries_to_us()
            first = place["row"] if place else 0
            for row, text in read_lines(self._shards[unit], self._dataset.text_key, first):
                yield row, text, {}
            return
        with _parquet_errors(self._shards[unit]):
            examples = self._open(unit)
            if place:
                examples.load_state_dict(place["state"])
            for row, example in enumerate(examples, place["row"] if place else 0):
                yield row, self._text(unit, example), examples.state_dict()

    def _text(self, unit: int, example: Mapping[str, Any]) -> str:
        """The text of a row; empty for a null."""
        key = self._dataset.text_key
        text = example[key]
        if not isinstance(text, str | None):
            raise no_text(self._shards[unit], key, text)
        return text or ""

    def _wait_for_hub(self, unit: int, tries: int, error: Exception) -> None:
        """Say what is tried again and when, and wait; raise SaeSweepError if no further try is worth it."""
        shard = self._shards[unit]
        if not (shard.startswith("hf://") and may_answer_later(error)):
            raise unreachable(self._dataset, error) from error
        if tries == len(WAITS_S):
            raise unreachable(self._dataset, error, f" in {tries + 1} tries") from error
        log.warning(
            "cannot read %s (%s): trying again in %d s (%d of %d)",
            *(shard, first_line(_first_cause(error)), WAITS_S[tries], tries + 1, len(WAITS_S)),
        )
        if not wait(WAITS_S[tries]):  # a stop was requested: what is trained is saved, and the stop obeyed
            raise unreachable(self._dataset, error) from error

    def _open(self, unit: int) -> Any:
        key, shard = self._dataset.text_key, self._shards[unit]
        examples = _load_shard(shard, [key])
        if key not in examples.features:
            raise no_column(shard, _load_shard(shard).features.arrow_schema, key)
        # row groups become the library's shards: restoring a position then skips them without reading
        return examples.reshard()


@contextmanager
def _parquet_errors(shard: str) -> Iterator[None]:
    """Raise errors about a damaged file as SaeSweepError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        raise SaeSweepError(f"{shard} is not a readable Parquet file: {first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise SaeSweepError(f"{shard} holds text that is not UTF-8: {first_line(error)}") from error


def _load_shard(shard: str, columns: list[str] | None = None) -> Any:
    from datasets import load_dataset

    _leave_retries_to_us()
    files = {"train": [shard]}
    # with a batch size, for without one a row group that has no rows is an error
    return load_dataset(
        "parquet", data_files=files, split="train", streaming=True, columns=columns, batch_size=_ROWS_AT_ONCE
    )


@functools.cache
def _leave_retries_to_us() -> None:
    """Turn off the retries of `datasets`, and the lines of all libraries about theirs, in this process.

    `datasets` tries 20 times, each of them 6 times, and writes 505 lines; the lower library's 6 tries within
    half a minute stay.
    """
    import datasets.config

    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
    if not found or not all(name.endswith(_READABLE) for name in found):
        raise SaeSweepError(
            f"{dataset.path}@{dataset.revision}: no {' or '.join(_READABLE)} files match "
            f"dataset.files={dataset.files}; "
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
    files = (file for file in Path(folder).rglob("*") if file.name.endswith(_READABLE) and file.is_file())
    names = (file.relative_to(folder).as_posix() for file in files)
    return [str(Path(folder) / name) for name in sorted(names) if fnmatch.fnmatchcase(name, dataset.files)]


def hub_failures() -> tuple[type[Exception], ...]:
    """Return what the hub library raises if it gets no answer: OSError and errors of its HTTP client."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)


def may_answer_later(error: Exception) -> bool:
    """Whether another try may succeed: no connection, or a server in trouble."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = _first_cause(error)
    if isinstance(cause, OfflineModeIsEnabled | FileNotFoundError | PermissionError):
        return False
    if isinstance(cause, HfHubHTTPError):
        return cause.response is None or cause.response.status_code in _TRY_AGAIN
    return getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT)


def _first_cause(error: BaseException) -> BaseException:
    """The error that others were raised from: "connection refused" rather than "server disconnected"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def unreachable(dataset: HubDataset, error: Exception, tries: str = "") -> SaeSweepError:
    """Return the one-line error for a hub that does not answer, with the ways to work offline."""
    cause = first_line(_first_cause(error))
    return SaeSweepError(
        f"cannot read {dataset.path} at {dataset.revision} from the Hugging Face hub{tries} ({cause}). "
        "Launch the same command again when it answers. Offline, use dataset=stdlib_docs or another embedded "
        "corpus, or dataset=files dataset.path=FOLDER; or fill the hub's cache while online: "
        f"hf download {dataset.path} --repo-type dataset --revision {dataset.revision} "
        f"--include '{dataset.files}'"
    )
