"""What comparisons read from text: inputs at random tokens, features that fire together, ablations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.activations import LanguageModel
from sae_sweep.analysis.ablation import Ablation, ablate
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.features import Subject, Text, analyse_positions
from sae_sweep.analysis.logit_effects import logit_norms
from sae_sweep.analysis.losses import BATCH_TOKENS
from sae_sweep.config import CommandConfig, RunConfig, SaeSweepError
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.group import Models
from sae_sweep.saes import SAE
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import PlannedRun, cache_folder
from sae_sweep.text import held_out_sequences, open_text, token_mask

_SPARE = 2
"""Inputs that are kept for each feature of an SAE, for the null of random tokens."""


@dataclass(frozen=True)
class Reader:
    """An SAE, and the model and text through which it is read."""

    name: str
    config: RunConfig
    load: Callable[[], SAE]
    run: PlannedRun | None = None
    """None for an SAE that is no run."""


@dataclass
class Reading:
    """Reads held-out text for the SAEs of a command; consecutive ones share a model."""

    command: CommandConfig
    device: str
    """As in a run's config."""
    _models: Models = field(default_factory=Models)

    def check(self, one: Reader) -> None:
        """Open text and model, and see that they fit the SAE.

        Raises:
            SaeSweepError: one line that says what does not.
        """
        self._open(one)

    def inputs(self, one: Reader, seed: int = 0) -> Float[Tensor, "tokens d_in"]:
        """What the SAE is given at random tokens, in SAE-input space."""
        lm, text, subject = self._open(one)
        parts = []
        with torch.no_grad():
            for start in range(0, len(text.tokens), max(1, BATCH_TOKENS // text.seq_len)):
                raise_if_requested()
                rows = slice(start, start + max(1, BATCH_TOKENS // text.seq_len))
                ids, keep = (torch.from_numpy(part[rows]).to(lm.device) for part in (text.tokens, text.mask))
                x = lm.residuals(ids.long(), [subject.layer])[subject.layer]
                parts.append(subject.sae.normalise(x[keep].float()).x.cpu())
        found = torch.cat(parts)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        return found[order[: _SPARE * len(subject.sae.W_dec)]]

    def codes(self, a: Reader, b: Reader) -> tuple[Codes, Codes]:
        """Sparse codes of both over the first one's text."""
        lm, text, first = self._open(a)
        second = Subject(b.load().to(lm.device).eval(), b.config.layer)
        lm.check([second.layer], text.seq_len)
        found = analyse_positions({"a": first, "b": second}, lm, text, between=raise_if_requested)
        return found["a"].codes, found["b"].codes

    def text_codes(self, one: Reader) -> tuple[np.ndarray, Codes]:
        """Token ids of the text, [sequences, length], and the SAE's sparse codes of it."""
        lm, text, subject = self._open(one)
        found = analyse_positions({"a": subject}, lm, text, between=raise_if_requested)
        return text.tokens, found["a"].codes

    def ablations(self, one: Reader, sets: Mapping[str, Bool[Tensor, " d_sae"]]) -> list[Ablation]:
        """The model's loss without some sets of features."""
        lm, text, subject = self._open(one)
        return ablate(subject, lm, text, sets, between=raise_if_requested)

    def logit_norms(self, one: Reader) -> Float[Tensor, " d_sae"] | None:
        """Norm of each feature's direct effect on the logits; None where the model makes them otherwise."""
        lm, text, subject = self._open(one)
        try:
            unembedding = lm.unembedding(torch.from_numpy(text.tokens[:2, :128]).long())
        except SaeSweepError:
            return None
        return logit_norms(subject.sae.W_dec.detach(), unembedding, between=raise_if_requested)

    def _open(self, one: Reader) -> tuple[LanguageModel, Text, Subject]:
        sae, shape = one.load(), one.config.model.shape
        if shape is not None and sae.d_in != shape[1]:
            raise SaeSweepError(
                f"{one.name} reads residuals of width {sae.d_in}, and those of {one.config.model.label} have "
                f"{shape[1]}: give the model, layer and dataset that it was trained on"
            )
        lm = self._models.get(replace(one.config, device=self.device))
        if one.run is not None:
            refuse_other_content(one.run, cache_folder(self.command.paths.cache))
        config, wanted = one.config, self.command.matching.tokens or 0
        source = open_text(config.dataset, cache_folder(self.command.paths.cache))
        tokens = held_out_sequences(source, config.packing, lm.tokenizer, wanted)
        mask = token_mask(tokens, lm.tokenizer.special_ids, config.packing)
        lm.check([config.layer], config.packing.seq_len)
        if sae.d_in != lm.d_model:
            raise SaeSweepError(
                f"{one.name} reads residuals of width {sae.d_in}, and those of {lm.name} have {lm.d_model}: "
                "give the model that it was trained on"
            )
        return lm, Text(tokens, mask), Subject(sae.to(lm.device).eval(), config.layer)
