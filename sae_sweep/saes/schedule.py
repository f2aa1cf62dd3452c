"""How the learning rate and the sparsity coefficients move with the steps done, as shares of the budget."""

from sae_sweep.config import Config


def ramp(step: int, over: float) -> float:
    """Linear rise to 1 that reaches it at the `over`-th step; `step` counts from 0."""
    return 1.0 if over <= 0 else min(1.0, (step + 1) / over)


def learning_rate(step: int, config: Config) -> float:
    """The rate of step `step` (from 0): linear warm-up, flat, linear decay to 0 just after the last step.

    With both fractions at 0 it is constant, as in the study.
    """
    optimizer, steps = config.optimizer, config.steps
    up = ramp(step, optimizer.warmup_fraction * steps)
    down = ramp(steps - step - 1, optimizer.decay_fraction * steps)
    return optimizer.lr * max(0.0, min(up, down))
