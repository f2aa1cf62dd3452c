"""Text and weights that are still those of a run's id when its training begins."""

from collections.abc import Collection
from pathlib import Path

from sae_sweep.activations import weights_fingerprint
from sae_sweep.config import SaeSweepError
from sae_sweep.saes import start_fingerprint
from sae_sweep.store import PlannedRun
from sae_sweep.text import fingerprint

_NAMES = {"corpus": "text", "model": "model", "start": "SAE"}


def refuse_other_content(run: PlannedRun, cache: Path, of: Collection[str] = ("corpus", "model")) -> None:
    """Refuse a run whose text or model is no longer what it was when the run was planned.

    A job can wait for days, and so can the last group of a command.

    Args:
        run: the run; its fingerprints are part of its id.
        cache: folder of the embedded corpora.
        of: what is looked at: the text, the model, or both.

    Raises:
        SaeSweepError: naming what changed, and what to do.
    """
    look = {
        "corpus": lambda: fingerprint(run.config.dataset, cache),
        "model": lambda: weights_fingerprint(run.config.model),
    }
    now = {key: look[key]() for key in of}
    where = {"corpus": getattr(run.config.dataset, "path", run.config.dataset.name)}
    where["model"] = run.config.model.path
    if run.config.init.sae is not None:
        now["start"], where["start"] = start_fingerprint(run.config.init.sae), run.config.init.sae
    changed = [key for key, value in now.items() if run.fingerprints.get(key, value) != value]
    if changed:
        what = " and ".join(f"the {_NAMES[key]} {where[key]}" for key in changed)
        raise SaeSweepError(
            f"{what} changed after {run.name} was planned: put back what was there and launch the same "
            "command again, or choose another sweep=NAME for the new content"
        )
