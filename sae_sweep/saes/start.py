"""The SAE that a run starts from: drawn from its seed, or one on disk (`init.sae`)."""

import logging
import os

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import RunConfig, SaeSweepError, expanded
from sae_sweep.saes import hub
from sae_sweep.saes.base import AVERAGE, SAE
from sae_sweep.saes.build import CLASSES, build_sae, init_seed, initial_decoder
from sae_sweep.saes.checksum import sae_fingerprint
from sae_sweep.saes.foreign import ForeignConfig, ForeignSAE, Origin
from sae_sweep.saes.open import open_sae

log = logging.getLogger(__name__)

_OURS = {"standard": "relu"}
"""Kinds of architectures that have another name in other libraries."""
_ONLY_CENTRED = ("none", "layer_norm")
"""Normalisations that a centred residual needs nothing for; the latter centres it again."""
_SAME = 1e-5
"""Relative difference of thresholds, and of norms from 1, that rounding explains."""
_MOST_UNEVEN = 0.01
"""Relative difference of decoder norms up to which they hardly change which features are largest."""


def starting_sae(config: RunConfig, d_in: int, run_id: str) -> SAE:
    """The untrained SAE of a run, or the one of `init.sae` as a member of the run's architecture.

    Raises:
        SaeSweepError: if the SAE on disk is damaged, or is not one that the run can start from.
    """
    if config.init.sae is None:
        seed, d_sae = init_seed(config, run_id), config.dictionary * d_in
        how = {"numerics": config.numerics, "normalisation": config.resolved_normalisation}
        return build_sae(config.architecture, d_in, d_sae, seed=seed, **how)
    found, origin = _opened(config.init.sae)
    if problem := _problem(found, config, d_in):
        raise SaeSweepError(problem)
    if origin.layer not in (None, config.layer):
        log.warning(
            "init.sae=%s was trained on layer %d, and this run reads layer %d",
            *(config.init.sae, origin.layer, config.layer),
        )
    return _converted(found, config)


def evaluated_start(config: RunConfig, d_in: int) -> SAE:
    """The SAE that a fine-tuned run is evaluated beside: what it starts as.

    A BatchTopK without a threshold has none before training, and without one all positive latents would pass:
    it is taken as it is, and keeps the largest of a batch.

    Raises:
        SaeSweepError: as `starting_sae`, or if the run starts from no SAE.
    """
    if config.init.sae is None:
        raise SaeSweepError("a run that is drawn from its seed is not evaluated beside its start")
    found = _read(config.init.sae)
    if config.architecture.kind == "batchtopk" and "threshold" not in found.state_dict():
        return found
    return starting_sae(config, d_in, "")


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
    return sae_fingerprint(_read(path))


def start_normalisation(path: str) -> str:
    """How the SAE of `init.sae` normalises its inputs.

    Raises:
        SaeSweepError: if there is none, or it is damaged.
    """
    return _read(path).normalisation


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
    return _opened(path)[0]


def _opened(path: str) -> tuple[SAE, Origin]:
    on_hub = path.startswith(hub.PREFIX)  # any other name is a folder's, even if there is none
    return open_sae(path if on_hub else os.path.abspath(expanded(path)), to_train=True)


def _problem(found: SAE, config: RunConfig, d_in: int) -> str | None:
    where, kinds, kind = f"init.sae={config.init.sae}", _kinds(found), config.architecture.kind
    if problem := _other_inputs(found, config):
        return f"{where} {problem}"
    if kind not in kinds:
        return f"{where} is a {' or '.join(kinds)} SAE, and architecture={kind} computes something else"
    if found.d_in != d_in:
        return f"{where} has d_in={found.d_in}, and {config.model.label} has {d_in}"
    if found.d_sae != config.dictionary * d_in:
        fitting = f"dictionary={found.d_sae // d_in}" if found.d_sae % d_in == 0 else "no dictionary"
        return f"{where} has {found.d_sae:,} features: {fitting} fits it, not dictionary={config.dictionary}"
    ours = CLASSES[kind].sae
    if config.numerics == "study" and not ours.biased_in_study and _bias(found, ours.subtracts_b_dec).any():
        return f"{where} has an encoder bias, which {kind} has not with numerics=study"
    return None


def _other_inputs(found: SAE, config: RunConfig) -> str | None:
    """Why the run's SAE cannot take its inputs as `found` does."""
    reads, arch = found.normalisation, found.architecture
    if isinstance(arch, ForeignConfig) and arch.centred and arch.normalize_activations not in _ONLY_CENTRED:
        return f"centres residuals and normalises them by {arch.normalize_activations} too, as no run does"
    if config.normalisation in ("auto", reads) or (reads, config.normalisation) == ("none", AVERAGE):
        return None  # one factor for all inputs changes units alone
    return f"has normalisation={reads}, not {config.normalisation}: give that, or leave the key out"


def _kinds(sae: SAE) -> list[str]:
    """Architectures that compute what an SAE does: JumpReLU with one threshold for all is BatchTopK, too."""
    if not isinstance(sae, ForeignSAE):
        return [sae.architecture.kind]
    kind = sae.architecture.architecture
    one_threshold = kind == "jumprelu" and torch.allclose(*_threshold(sae).aminmax(), rtol=_SAME)
    return [_OURS.get(kind, kind), *(["batchtopk"] if one_threshold else [])]


def _converted(found: SAE, config: RunConfig) -> SAE:
    """An SAE of the run's config with the features of `found`, decoder rows scaled to norm 1."""
    kind = CLASSES[config.architecture.kind].sae
    sae = kind(config.architecture, found.d_in, found.d_sae, config.numerics)
    norms = _norms(found)
    _warn_of_another_choice(found, norms, config)
    with torch.no_grad():
        sae.W_enc.copy_(found.W_enc * norms)  # a feature that decodes to nothing becomes a dead one
        sae.W_dec.copy_(found.W_dec / torch.where(norms > 0, norms, 1)[:, None])
        sae.W_dec[norms == 0] = found.d_in**-0.5
        sae.b_dec.copy_(found.b_dec)
        if sae.b_enc is not None:
            sae.b_enc.copy_(_bias(found, sae.subtracts_b_dec) * norms)
        if "threshold" in sae.state_dict() and "threshold" in found.state_dict():
            ours, threshold = sae.state_dict()["threshold"], _threshold(found)
            ours.copy_(threshold if ours.ndim else threshold.max())
    how = found.normalisation if config.normalisation == "auto" else config.normalisation
    sae.normalise_by(how, scale=float(found.normalisation == "none"))
    return sae


def _warn_of_another_choice(found: SAE, norms: Float[Tensor, " d_sae"], config: RunConfig) -> None:
    """Say why the largest latents, by which TopK and BatchTopK choose, begin as those of other features."""
    ours, theirs = (getattr(arch, "k", None) for arch in (config.architecture, found.architecture))
    if ours is None:
        return
    start, norms = f"init.sae={config.init.sae}", norms[norms > 0]
    if theirs is not None and ours != theirs:
        log.warning("%s has k=%d, and this run k=%d: it starts near that SAE", start, theirs, ours)
    if len(norms) and norms.max() > (1 + _MOST_UNEVEN) * norms.min():
        log.warning(
            "the decoder rows of %s have norms from %.2g to %.2g, and here 1, so %s chooses other features: "
            "it starts near that SAE",
            *(start, norms.min(), norms.max(), config.architecture.kind),
        )


def _threshold(sae: SAE) -> Float[Tensor, "..."]:
    """Thresholds of latents of unit decoder rows; a negative one lets no more through than 0 does."""
    threshold = sae.state_dict()["threshold"].clamp(min=0)
    return threshold * _norms(sae) if threshold.ndim else threshold


def _norms(sae: SAE) -> Float[Tensor, " d_sae"]:
    """Norms of decoder rows; exactly 1 where only rounding differs, so that our SAEs stay bit for bit."""
    norms = sae.W_dec.detach().norm(dim=1)
    return torch.where((norms - 1).abs() < _SAME, 1, norms)


def _bias(sae: SAE, subtracts_b_dec: bool) -> Tensor:
    """The encoder's bias of an SAE that subtracts `b_dec` from its input, or does not, in place of `sae`."""
    bias = torch.zeros(sae.d_sae) if sae.b_enc is None else sae.b_enc
    return bias + (int(subtracts_b_dec) - int(_subtracts_b_dec(sae))) * (sae.b_dec @ sae.W_enc)


def _subtracts_b_dec(sae: SAE) -> bool:
    return sae.architecture.apply_b_dec_to_input if isinstance(sae, ForeignSAE) else sae.subtracts_b_dec
