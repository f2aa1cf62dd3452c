"""study: needs nothing but this repository."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from peer_trainers.base import Job, Peer, Seen, put


class Study(Peer):
    """The study's trainer (bartbussmann/BatchTopK), as `tests/saes/study_reference.py` derives it again."""

    def __init__(self, job: Job, given: dict[str, Tensor]) -> None:
        super().__init__(job, given)
        reference = _study_reference()
        self.sae = reference.StudySAE(
            job.architecture,
            self.d_in,
            self.d_sae,
            seed=0,
            k=job.k,
            coefficient=job.l0_coefficient,
            bandwidth=job.bandwidth,
        )
        put(given["W_enc"], self.sae.W_enc)
        put(given["W_dec"], self.sae.W_dec)
        if job.architecture == "jumprelu":
            put(given["threshold"].log(), self.sae.log_threshold)
        self.sae.to(job.device)
        self.trainer = reference.StudyTrainer(self.sae)
        self.trainer.adam.param_groups[0]["lr"] = job.lr
        self.before_step()

    def version(self) -> str:
        return "re-derived"

    def before_step(self) -> None:
        # after 5 batches without firing AuxK would set in
        self.sae.quiet_batches = torch.zeros(self.d_sae, dtype=torch.long, device=self.job.device)

    def step(self) -> None:
        self.trainer.step(self.x)

    @torch.no_grad()
    def look(self) -> Seen:
        sae = self.sae
        if self.job.architecture != "jumprelu":
            return Seen(float(sae(self.x)), float(self.job.k))
        # its loss is the error and coefficient x L0
        used, sae.coefficient = sae.coefficient, 0.0
        mse, sae.coefficient = float(sae(self.x)), 1.0
        both, sae.coefficient = float(sae(self.x)), used
        return Seen(mse, both - mse)


def _study_reference() -> ModuleType:
    path = Path(__file__).parents[2] / "tests" / "saes" / "study_reference.py"
    spec = importlib.util.spec_from_file_location("study_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
