"""The complete training step of one SAE, without a framework."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import RunConfig, SaeSweepError
from sae_sweep.ops import choose_kernels, total_variance
from sae_sweep.saes.base import NORMALISATION_EPS, SAE
from sae_sweep.saes.build import RULES, build_objective, initial_b_dec
from sae_sweep.saes.objectives import Losses
from sae_sweep.saes.optimizer import Optimizer, learning_rate
from sae_sweep.store import cache_folder


class Learner:
    """One SAE in training, with its Adam, schedules, silence counters and threshold.

    A step is: normalise, loss, backward, clip, Adam with decoder-row normalisation, threshold update. The
    presets are in `modern.py` and `study.py`.
    """

    def __init__(
        self, sae: SAE, config: RunConfig, device: torch.device | str, cache: Path | None = None
    ) -> None:
        """`cache`: folder that keeps compiled kernels; None: `sae_sweep` in the user's cache folder.

        Raises:
            SaeSweepError: if the config names another normalisation than the SAE has.
        """
        if config.normalisation not in ("auto", sae.normalisation):
            raise SaeSweepError(f"this SAE has normalisation={sae.normalisation}, not {config.normalisation}")
        self.sae = sae.to(device)
        self.steps = 0
        """Training steps completed."""
        self.tokens = 0
        """SAE inputs trained on."""
        self._config = config
        self._device = torch.device(device)
        self._kernels = None  # kernels compute in float32 only
        if sae.W_dec.dtype is torch.float32:
            self._kernels = choose_kernels(config.backend, self._device, cache or cache_folder(None)).kernels
        self._objective = build_objective(self.sae, config, self._kernels).to(device)
        self._optimizer = Optimizer(
            {name: p for name, p in self._objective.named_parameters() if p.requires_grad},
            self.sae.W_dec,
            config.optimizer,
            RULES[sae.numerics].unit_rows,
            self._kernels,
        )

    def step(self, x: Float[Tensor, "batch d_in"]) -> dict[str, Tensor]:
        """Train on one batch of raw residuals.

        Returns:
            0-d detached tensors on the device: loss, mse, aux (before its coefficient), l0 (in training),
            dead (number of features), explained_variance (of this batch, in SAE-input space) and lr; for
            BatchTopK also threshold and l0_inference, the l0 with that threshold.
        """
        if self.steps == 0 and self.sae.input_scale is not None:
            self.sae.scale_inputs(self.sae.d_in**0.5 / x.float().norm(dim=-1).mean())
            self._objective.inputs_scaled()
        xn = self._normalised(x)
        if self.steps == 0 and self._config.init.b_dec != "zero":
            self.sae.b_dec.data.copy_(initial_b_dec(xn, self._config.init.b_dec))
        rate = learning_rate(self.steps, self._config)
        losses: Losses = self._objective(xn, self.steps)
        self._optimizer.update(losses.loss, rate)
        self._objective.after_step()
        self.steps += 1
        self.tokens += len(x)
        return self._metrics(xn, losses, rate)

    def _normalised(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        if self._kernels is None:
            return self.sae.normalise(x).x
        if self.sae.normalisation == "layer_norm":
            return self._kernels.normalise(x.float().contiguous(), NORMALISATION_EPS)
        return self.sae.normalise(x.float()).x.contiguous()

    def finish(self) -> SAE:
        """The trained SAE, which reads raw residuals; no step may follow."""
        self.sae.fold_input_scale()
        return self.sae

    @torch.no_grad()
    def _metrics(self, xn: Tensor, losses: Losses, rate: float) -> dict[str, Tensor]:
        return {
            "loss": losses.loss.detach(),
            "mse": losses.mse.detach(),
            "aux": losses.aux.detach(),
            "l0": (losses.output.f > 0).sum() / len(xn),
            "dead": losses.output.dead.sum(),
            "explained_variance": 1 - losses.mse.detach() / total_variance(xn),
            "lr": torch.tensor(rate),
            **self._objective.extra_metrics(losses.output),
        }

    def state(self) -> dict[str, Tensor]:
        """All state that the next step depends on, as contiguous copies on the CPU."""
        tensors = {f"objective.{name}": value for name, value in self._objective.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in self._optimizer.state().items()}
        tensors["steps"] = torch.tensor(self.steps)
        tensors["tokens"] = torch.tensor(self.tokens)
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`, bit for bit.

        Raises:
            SaeSweepError: if `state` is of an SAE of another architecture, size, dtype or numerics.
        """
        self._refuse_other(state)
        self._objective.load_state_dict(_part_of(state, "objective."))
        self.steps, self.tokens = int(state["steps"]), int(state["tokens"])
        self._optimizer.load_state(_part_of(state, "adam."))

    def _refuse_other(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a state that lacks a tensor, or has one of another name, shape or dtype."""
        known = {f"objective.{name}": _kind(value) for name, value in self._objective.state_dict().items()}
        known |= {f"adam.{name}": _kind(value) for name, value in self._optimizer.empty_state().items()}
        known |= {name: _kind(torch.tensor(0)) for name in ("steps", "tokens")}
        found = {name: _kind(value) for name, value in state.items()}
        began = found.get("steps") == known["steps"] and int(state["steps"]) > 0
        needed = {name for name in known if began or not name.startswith("adam.")}
        wrong = [name for name in found if found[name] != known.get(name)] + sorted(needed - found.keys())
        if wrong or not 0 <= int(state["steps"]) <= int(state["tokens"]):
            raise SaeSweepError(
                "the checkpoint does not fit this SAE (another architecture, size or version"
                f"{f': {wrong[0]} differs' if wrong else ''}): "
                "delete the run's checkpoint folder to start it again"
            )


def _part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _kind(value: Tensor) -> tuple[torch.Size, torch.dtype]:
    return value.shape, value.dtype
