"""Adam with its learning-rate schedule and the normalisation of decoder rows around each step."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from sae_sweep.config import OptimizerConfig, RunConfig
from sae_sweep.ops import AdamUpdate, Kernels

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Adam's state of each parameter, in torch's names."""


def ramp(step: int, over: float) -> float:
    """Linear rise to 1, reached at step `over`; `step` counts from 0."""
    return 1.0 if over <= 0 else min(1.0, (step + 1) / over)


def learning_rate(step: int, config: RunConfig) -> float:
    """Learning rate of `step` (from 0): linear warm-up, constant, linear decay to 0 just after the last step.

    Constant if both fractions are 0, as in the study.
    """
    optimizer, steps = config.optimizer, config.steps
    up = ramp(step, optimizer.warmup_fraction * steps)
    down = ramp(steps - step - 1, optimizer.decay_fraction * steps)
    return optimizer.lr * max(0.0, min(up, down))


class Optimizer:
    """Adam for one SAE, in torch or, with kernels, in one pass over each parameter.

    Both presets remove the gradient along each decoder row, and set rows to norm 1 before or after the
    step. The state is the same with and without kernels.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decoder: nn.Parameter,
        config: OptimizerConfig,
        unit_rows: Literal["before", "after"],
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
        """Backward, clip, and one step at learning rate `rate`; clears the gradients."""
        loss.backward()
        if self._kernels is None:
            self._step_in_torch(rate)
        else:
            self._step_with(self._kernels, rate)
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def _step_in_torch(self, rate: float) -> None:
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
    def _step_with(self, kernels: Kernels, rate: float) -> None:
        gradient_scale = self._gradient_scale()
        for parameter in self._parameters.values():
            if parameter.grad is None:
                continue
            state = self._state_of(parameter)
            state["step"] += 1
            update = AdamUpdate(
                lr=rate,
                betas=(self._config.beta1, self._config.beta2),
                eps=self._config.eps,
                step=int(state["step"]),
                gradient_scale=gradient_scale,
                tangent=parameter is self._decoder,
                unit_rows=self._unit_rows if parameter is self._decoder else None,
            )
            rows = _rows(parameter)
            gradient = _rows(parameter.grad).contiguous()
            kernels.adam(rows, gradient, (_rows(state["exp_avg"]), _rows(state["exp_avg_sq"])), update)

    def _gradient_scale(self) -> Tensor | None:
        """The factor that `clip_grad_norm_` would multiply gradients by; None without clipping."""
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
        """Adam's state as `<parameter>.<moment>`; empty before the first step."""
        return {
            f"{name}.{moment}": value
            for name, parameter in self._parameters.items()
            for moment, value in self._adam.state[parameter].items()
        }

    def empty_state(self) -> dict[str, Tensor]:
        """Tensors of the names, shapes and dtypes that `state` has after the first step, without memory."""
        step = torch.tensor(0.0, device="meta")
        return {
            f"{name}.{moment}": step if moment == "step" else parameter.detach().to("meta")
            for name, parameter in self._parameters.items()
            for moment in MOMENTS
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; a parameter without an entry starts from zero."""
        self._adam.state.clear()
        for name, parameter in self._parameters.items():
            if f"{name}.step" in state:
                # Adam counts steps on the CPU, wherever the moments are
                moments = {
                    moment: torch.empty_like(parameter).copy_(state[f"{name}.{moment}"])
                    for moment in MOMENTS
                    if moment != "step"
                }
                self._adam.state[parameter] = {"step": state[f"{name}.step"].clone().cpu(), **moments}


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as a matrix of rows that are contiguous in memory."""
    if tensor.dim() < 2:
        return tensor.view(1, -1)
    return tensor if tensor.is_contiguous() else tensor.t()
