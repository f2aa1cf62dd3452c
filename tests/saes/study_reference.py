"""An independent derivation of the study's trainer, with which tests compare `numerics=study`.

Sources: definitions.md 1.1 (row BTK), 1.2, 1.3 (a to g), 1.7, and DESIGN.md §5 "study". It uses no code of
the package. Autograd differentiates all of it: JumpReLU's straight-through gradients are not custom functions
but terms of value zero (θ - stop(θ), times a constant) with the desired derivative.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


def normalise(x: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-5) per token, with the unbiased std."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).sum(-1, keepdim=True) / (x.shape[-1] - 1)
    return centred / (variance.sqrt() + 1e-5)


class StudySAE(nn.Module):
    """An SAE of one of the study's four kinds, with its loss."""

    def __init__(self, kind: str, d_in: int, d_sae: int, seed: int, *, k: int = 0, coefficient: float = 0.0,
                 bandwidth: float = 0.001) -> None:  # fmt: skip
        super().__init__()
        torch.manual_seed(seed)
        start = torch.empty(d_in, d_sae)
        nn.init.kaiming_uniform_(start)
        self.W_enc = nn.Parameter(start)
        self.W_dec = nn.Parameter(torch.stack([column / column.norm() for column in start.unbind(1)]))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        if kind in ("jumprelu", "relu"):
            self.b_enc = nn.Parameter(torch.zeros(d_sae))
        if kind == "jumprelu":
            self.log_threshold = nn.Parameter(torch.zeros(d_sae))
        self.kind, self.k, self.coefficient, self.bandwidth = kind, k, coefficient, bandwidth
        self.quiet_batches = torch.zeros(d_sae, dtype=torch.long)
        self.dead_seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """The loss of a batch of raw activations."""
        losses: dict[str, Callable[[Tensor], Tensor]] = {
            "topk": lambda x: self._top_loss(x, per_token=True),
            "batchtopk": lambda x: self._top_loss(x, per_token=False),
            "jumprelu": self._jumprelu_loss,
            "relu": self._l1_loss,
        }
        return losses[self.kind](normalise(x))

    def _top_loss(self, x: Tensor, *, per_token: bool) -> Tensor:
        acts = relu((x - self.b_dec) @ self.W_enc)
        mask = torch.zeros_like(acts)
        if per_token:
            mask[torch.arange(len(x))[:, None], acts.argsort(-1, descending=True)[:, : self.k]] = 1
        else:
            mask.view(-1)[acts.view(-1).argsort(descending=True)[: self.k * len(x)]] = 1
        kept = acts * mask
        residual = x - (kept @ self.W_dec + self.b_dec)
        silent = (kept > 0).sum(0) == 0
        self.quiet_batches = (self.quiet_batches + 1) * silent
        return (residual**2).mean() + self._dead_loss(acts, residual) / 32

    def _dead_loss(self, acts: Tensor, residual: Tensor) -> Tensor:
        dead = self.quiet_batches >= 5
        n_dead = int(dead.sum())
        self.dead_seen.append(n_dead)
        if n_dead == 0:
            return torch.zeros(())
        among_dead = acts[:, dead]
        lowest_kept = among_dead.sort(-1, descending=True).values[:, min(512, n_dead) - 1 :][:, :1]
        chosen = among_dead * (among_dead >= lowest_kept)
        return ((residual - chosen @ self.W_dec[dead]) ** 2).mean()

    def _jumprelu_loss(self, x: Tensor) -> Tensor:
        z = relu(x @ self.W_enc + self.b_enc)
        theta = self.log_threshold.exp().detach()
        moving = self.log_threshold - self.log_threshold.detach()  # 0, with derivative 1: no factor theta
        open_ = (z > theta).detach().to(z.dtype)
        f = z * open_ - self._near(z, theta) * theta / self.bandwidth * moving
        # L0 uses f: a latent of 0 is far below theta, so only the upper half of the kernel acts
        active = (f > theta).to(z.dtype).detach() - self._near(f, theta) / self.bandwidth * moving
        error = f @ self.W_dec + self.b_dec - x
        return (error**2).mean() + self.coefficient * active.sum(-1).mean()

    def _near(self, z: Tensor, theta: Tensor) -> Tensor:
        distance = (z.detach() - theta) / self.bandwidth
        return ((distance > -0.5) & (distance < 0.5)).to(z.dtype)

    def _l1_loss(self, x: Tensor) -> Tensor:
        f = relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        error = f @ self.W_dec + self.b_dec - x
        return (error**2).mean() + self.coefficient * f.abs().sum(-1).mean()


class StudyTrainer:
    """One step: backward, clip at 1e5, unit rows, tangent gradient, Adam, in this order."""

    def __init__(self, sae: StudySAE) -> None:
        self.sae = sae
        self.adam = torch.optim.Adam(sae.parameters(), lr=3e-4, betas=(0.9, 0.99), eps=1e-8)

    def step(self, x: Tensor) -> float:
        self.adam.zero_grad()
        loss = self.sae(x)
        loss.backward()
        nn.utils.clip_grad_norm_(self.sae.parameters(), 1e5)
        rows, gradient = self.sae.W_dec.data, self.sae.W_dec.grad
        rows.copy_(nn.functional.normalize(rows, dim=-1))
        gradient.sub_(torch.einsum("fd,fd,fe->fe", gradient, rows, rows))
        self.adam.step()
        return float(loss.detach())
