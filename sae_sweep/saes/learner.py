"""The complete training step of one SAE, without a framework."""

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
        """`cache`: folder that keeps compiled kernels; None: `sae_sweep` in the user's cache folder."""
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
        if self._kernels is None:
            xn = self.sae.normalise(x).x
        else:
            xn = self._kernels.normalise(x.float().contiguous(), NORMALISATION_EPS)
        if self.steps == 0 and self._config.init.b_dec != "zero":
            self.sae.b_dec.data.copy_(initial_b_dec(xn, self._config.init.b_dec))
        rate = learning_rate(self.steps, self._config)
        losses: Losses = self._objective(xn, self.steps)
        self._optimizer.update(losses.loss, rate)
        self._objective.after_step()
        self.steps += 1
        self.tokens += len(x)
        return self._metrics(xn, losses, rate)

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

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`, bit for bit.

        Raises:
            SaeSweepError: if `state` is of an SAE of another architecture, size or numerics.
        """
        weights = {
            name.removeprefix("objective."): value
            for name, value in state.items()
            if name.startswith("objective.")
        }
        self._refuse_other(weights, state)
        self._objective.load_state_dict(weights)
        self.steps, self.tokens = int(state["steps"]), int(state["tokens"])
        self._optimizer.load_state(
            {name.removeprefix("adam."): value for name, value in state.items() if name.startswith("adam.")}
        )

    def _refuse_other(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        ours = {name: value.shape for name, value in self._objective.state_dict().items()}
        needed = {"steps", "tokens"}
        if int(state.get("steps", torch.tensor(0))):
            needed |= {f"adam.{name}" for name in self._optimizer.state_names()}
        if ours != {name: value.shape for name, value in weights.items()} or not needed <= state.keys():
            raise SaeSweepError(
                "the checkpoint does not fit this SAE (another architecture, size or version): "
                "delete the run's checkpoint folder to start it again"
            )
