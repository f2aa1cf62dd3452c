"""The whole training step of one SAE, without any framework."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import Config, SaeSweepError
from sae_sweep.saes.base import SAE
from sae_sweep.saes.init import initial_b_dec
from sae_sweep.saes.objectives import Outcome
from sae_sweep.saes.presets import build_objective
from sae_sweep.saes.schedule import learning_rate

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Learner:
    """One SAE in training, with its Adam, schedules, silence counters and threshold.

    A step is: normalise, loss, backward, clip, the preset's work on the decoder rows, Adam, the preset's work
    again. What a preset does when is in `modern.py` and `study.py`.
    """

    def __init__(self, sae: SAE, config: Config, device: torch.device | str) -> None:
        self.sae = sae.to(device)
        self.steps = 0
        """Steps done."""
        self.tokens = 0
        """SAE inputs seen."""
        self._config = config
        self._device = torch.device(device)
        self._objective = build_objective(self.sae, config).to(device)
        keys = config.optimizer
        self._adam = torch.optim.Adam(
            [parameter for _, parameter in self._trained()],
            lr=keys.lr,
            betas=(keys.beta1, keys.beta2),
            eps=keys.eps,
        )

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._objective.named_parameters() if p.requires_grad)

    def step(self, x: Float[Tensor, "batch d_in"]) -> dict[str, Tensor]:
        """Train on one batch of raw residuals.

        Returns:
            0-d tensors on the device, detached: loss, mse, aux (before its coefficient), l0 (as trained),
            dead (features), explained_variance (of this batch, in SAE-input space) and lr; for BatchTopK also
            threshold and l0_inference, what l0 would have been with it.
        """
        xn = self.sae.normalise(x).x
        if self.steps == 0 and self._config.init.b_dec != "zero":
            self.sae.b_dec.data.copy_(initial_b_dec(xn, self._config.init.b_dec))
        rate = learning_rate(self.steps, self._config)
        outcome = self._objective(xn, self.steps)
        self._update(outcome.loss, rate)
        self.steps += 1
        self.tokens += len(x)
        return self._metrics(xn, outcome, rate)

    def _update(self, loss: Tensor, rate: float) -> None:
        self._adam.zero_grad()
        loss.backward()
        if self._config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_((p for _, p in self._trained()), self._config.optimizer.clip_norm)
        self._objective.before_step()
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self._objective.after_step()

    @torch.no_grad()
    def _metrics(self, xn: Tensor, outcome: Outcome, rate: float) -> dict[str, Tensor]:
        return {
            "loss": outcome.loss.detach(),
            "mse": outcome.mse.detach(),
            "aux": outcome.aux.detach(),
            "l0": (outcome.seen.f > 0).sum(dim=-1).float().mean(),
            "dead": outcome.seen.dead.sum(),
            "explained_variance": 1 - outcome.mse.detach() / (xn - xn.mean(dim=0)).square().mean(),
            "lr": torch.tensor(rate),
            **self._objective.extra_metrics(outcome.seen),
        }

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, as contiguous CPU tensors that share no memory with training."""
        tensors = {f"objective.{name}": value for name, value in self._objective.state_dict().items()}
        for name, parameter in self._trained():
            for moment, value in self._adam.state[parameter].items():
                tensors[f"adam.{name}.{moment}"] = value
        tensors["steps"] = torch.tensor(self.steps)
        tensors["tokens"] = torch.tensor(self.tokens)
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue bit for bit where `state` was taken.

        Raises:
            SaeSweepError: if `state` is not one of an SAE of this architecture, size and numerics.
        """
        weights = {
            name.removeprefix("objective."): value
            for name, value in state.items()
            if name.startswith("objective.")
        }
        self._refuse_other(weights, state)
        self._objective.load_state_dict(weights)
        self.steps, self.tokens = int(state["steps"]), int(state["tokens"])
        self._adam.state.clear()
        if self.steps:
            for name, parameter in self._trained():
                self._adam.state[parameter] = self._moments(name, state)

    def _moments(self, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Adam counts its steps on the CPU wherever the moments live.
        return {
            moment: state[f"adam.{name}.{moment}"].clone().to("cpu" if moment == "step" else self._device)
            for moment in _MOMENTS
        }

    def _refuse_other(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        ours = {name: value.shape for name, value in self._objective.state_dict().items()}
        needed = {"steps", "tokens"}
        if int(state.get("steps", torch.tensor(0))):
            needed |= {f"adam.{name}.{moment}" for name, _ in self._trained() for moment in _MOMENTS}
        if ours != {name: value.shape for name, value in weights.items()} or not needed <= state.keys():
            raise SaeSweepError(
                "the checkpoint does not fit this SAE (another architecture, size or version): "
                "delete the run's checkpoint folder to start it again"
            )
