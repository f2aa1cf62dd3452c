"""The SAE that a run starts from: drawn from its seed, or one on disk (`init.sae`)."""

import dataclasses
import json

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import RunConfig, SaeSweepError, expanded
from sae_sweep.saes.base import SAE
from sae_sweep.saes.build import CLASSES, build_sae, init_seed, initial_decoder
from sae_sweep.saes.checksum import tensors_checksum
from sae_sweep.saes.foreign import ForeignSAE
from sae_sweep.saes.open import read_folder

_OURS = {"standard": "relu"}
"""Kinds of architectures that have another name in other libraries."""


def starting_sae(config: RunConfig, d_in: int, run_id: str) -> SAE:
    """The untrained SAE of a run, or the one of `init.sae` as a member of the run's architecture.

    Raises:
        SaeSweepError: if the SAE on disk is damaged, or is not one that the run can start from.
    """
    if config.init.sae is None:
        seed, d_sae = init_seed(config, run_id), config.dictionary * d_in
        return build_sae(config.architecture, d_in, d_sae, seed=seed, numerics=config.numerics)
    found = _read(config.init.sae)
    if problem := _problem(found, config, d_in):
        raise SaeSweepError(problem)
    return _converted(found, config)


def starting_decoder(config: RunConfig, d_in: int, d_sae: int, run_id: str) -> Float[Tensor, "d_sae d_in"]:
    """The decoder rows that a run starts from; its own are compared with them.

    Raises:
        SaeSweepError: if the SAE of `init.sae` cannot be read any more.
    """
    if config.init.sae is None:
        return initial_decoder(d_in, d_sae, init_seed(config, run_id))
    return _read(config.init.sae).W_dec.detach()


def start_fingerprint(path: str) -> str:
    """Identify an SAE by its weights and by how it computes, wherever it is.

    Raises:
        SaeSweepError: if there is none, or it is damaged.
    """
    sae = _read(path)
    tensors = {name: value.detach().contiguous() for name, value in sae.state_dict().items()}
    how = [sae.architecture.kind, sae.normalisation, sae.numerics, dataclasses.asdict(sae.architecture)]
    return tensors_checksum(tensors, json.dumps(how, sort_keys=True))


def start_problem(config: RunConfig) -> str | None:
    """Why a run cannot start from the SAE of its `init.sae`, as far as that is known without its model.

    Raises:
        SaeSweepError: if the SAE cannot be read.
    """
    if config.init.sae is None:
        return None
    found = _read(config.init.sae)
    shape = config.model.shape
    return _problem(found, config, shape[1] if shape else found.d_in)


def _read(path: str) -> SAE:
    return read_folder(expanded(path))[0]


def _problem(found: SAE, config: RunConfig, d_in: int) -> str | None:
    where, kind = f"init.sae={config.init.sae}", _kind(found)
    if found.normalisation != "layer_norm":
        return (
            f"{where} reads tokens normalised by {found.normalisation!r}, and SAEs here by layer_norm: its "
            "features would begin as others"
        )
    if kind != config.architecture.kind:
        return f"{where} is a {kind} SAE, and architecture={config.architecture.kind} computes something else"
    if found.d_in != d_in:
        return f"{where} has d_in={found.d_in}, and {config.model.label} has {d_in}"
    if found.d_sae != config.dictionary * d_in:
        fitting = f"dictionary={found.d_sae // d_in}" if found.d_sae % d_in == 0 else "no dictionary"
        return f"{where} has {found.d_sae:,} features: {fitting} fits it, not dictionary={config.dictionary}"
    if config.numerics == "study" and not CLASSES[kind].sae.biased_in_study and _bias(found).any():
        return f"{where} has an encoder bias, which {kind} has not with numerics=study"
    return None


def _kind(sae: SAE) -> str:
    if isinstance(sae, ForeignSAE):
        return _OURS.get(sae.architecture.architecture, sae.architecture.architecture)
    return sae.architecture.kind


def _converted(found: SAE, config: RunConfig) -> SAE:
    """An SAE of the run's config with the features of `found`, decoder rows scaled to norm 1."""
    kind = CLASSES[config.architecture.kind].sae
    sae = kind(config.architecture, found.d_in, found.d_sae, config.numerics)
    norms = found.W_dec.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1)
    with torch.no_grad():
        sae.W_enc.copy_(found.W_enc * norms)
        sae.W_dec.copy_(found.W_dec / norms[:, None])
        sae.b_dec.copy_(found.b_dec)
        if sae.b_enc is not None:
            shift = int(sae.subtracts_b_dec) - int(_subtracts_b_dec(found))
            sae.b_enc.copy_((_bias(found) + shift * (found.b_dec @ found.W_enc)) * norms)
        if "threshold" in sae.state_dict() and "threshold" in found.state_dict():
            threshold = found.state_dict()["threshold"]
            sae.state_dict()["threshold"].copy_(threshold * norms if threshold.ndim else threshold)
    return sae


def _bias(sae: SAE) -> Tensor:
    return torch.zeros(sae.d_sae) if sae.b_enc is None else sae.b_enc


def _subtracts_b_dec(sae: SAE) -> bool:
    return sae.architecture.apply_b_dec_to_input if isinstance(sae, ForeignSAE) else sae.subtracts_b_dec
