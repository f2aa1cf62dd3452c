"""Adam, and what is done to the decoder's rows around its step: in torch, or in one pass over each matrix."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sae_sweep.config import OptimizerConfig
from sae_sweep.ops import AdamUpdate, Kernels

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps for each parameter, in torch's names."""


class Optimizer:
    """One SAE's Adam.

    The gradient along a decoder row is taken out in both presets; rows are set to norm 1 before the step or
    after it. The state has torch's names, and is the same with kernels and without.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decoder: nn.Parameter,
        config: OptimizerConfig,
        unit_rows: str,
        kernels: Kernels | None,
    ) -> None:
        self._parameters = dict(parameters)
        self._decoder = decoder
        self._config = config
        self._unit_rows = unit_rows
        self._kernels = kernels
        self._adam = torch.optim.Adam(
            self._parameters.values(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
        )

    def update(self, loss: Tensor, rate: float) -> None:
        """Backward, clip, and one step at learning rate `rate`; the gradients are given up."""
        loss.backward()
        if self._kernels is None:
            self._update_plainly(rate)
        else:
            self._update_with(self._kernels, rate)
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def _update_plainly(self, rate: float) -> None:
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._config.clip_norm)
        W_dec, gradient = self._decoder, self._decoder.grad
        if self._unit_rows == "before":
            W_dec.div_(W_dec.norm(dim=-1, keepdim=True))
        if gradient is not None:
            gradient -= (gradient * W_dec).sum(dim=-1, keepdim=True) * W_dec
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        if self._unit_rows == "after":
            W_dec.div_(W_dec.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def _update_with(self, kernels: Kernels, rate: float) -> None:
        shrink = self._shrink()
        for parameter in self._parameters.values():
            if parameter.grad is None:
                continue
            state = self._state_of(parameter)
            state["step"] += 1
            update = AdamUpdate(
                rate=rate,
                betas=(self._config.beta1, self._config.beta2),
                eps=self._config.eps,
                step=int(state["step"]),
                shrink=shrink,
                tangent=parameter is self._decoder,
                unit=self._unit_rows if parameter is self._decoder else None,
            )
            rows = _rows(parameter)
            gradient = _rows(parameter.grad).contiguous()
            kernels.adam(rows, gradient, (_rows(state["exp_avg"]), _rows(state["exp_avg_sq"])), update)

    def _shrink(self) -> Tensor | None:
        """As `clip_grad_norm_` would."""
        if self._config.clip_norm is None:
            return None
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        return (self._config.clip_norm / (norm + 1e-6)).clamp(max=1.0)

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self._adam.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def state(self) -> dict[str, Tensor]:
        """By parameter and moment; empty before the first step."""
        return {
            f"{name}.{moment}": value
            for name, parameter in self._parameters.items()
            for moment, value in self._adam.state[parameter].items()
        }

    def state_names(self) -> list[str]:
        """The keys of `state` after the first step."""
        return [f"{name}.{moment}" for name in self._parameters for moment in MOMENTS]

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave; without an entry, as before the first step."""
        self._adam.state.clear()
        for name, parameter in self._parameters.items():
            if f"{name}.step" in state:
                # Adam counts its steps on the CPU wherever the moments live
                moments = {
                    moment: torch.empty_like(parameter).copy_(state[f"{name}.{moment}"])
                    for moment in MOMENTS
                    if moment != "step"
                }
                self._adam.state[parameter] = {"step": state[f"{name}.step"].clone().cpu(), **moments}


def _rows(tensor: Tensor) -> Tensor:
    """As the rows that lie one behind the other in memory."""
    if tensor.dim() < 2:
        return tensor.view(1, -1)
    return tensor if tensor.is_contiguous() else tensor.t()
