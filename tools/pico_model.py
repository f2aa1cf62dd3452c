"""A GPT-2 that trains fast on a CPU: fp32, the weights of all layers stacked, and Muon for the stacks.

It computes the same as Hugging Face's `GPT2LMHeadModel` without dropout; `hf_state` gives the weights its
names.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

MATRICES = ("qkv", "attn_out", "mlp_in", "mlp_out")
"""The parameters that Muon trains; AdamW trains the others."""


@dataclass(frozen=True)
class Shape:
    """The size of the model; `hf_config` has GPT-2's names for it."""

    n_layer: int = 12
    n_head: int = 4
    d_model: int = 128
    n_ctx: int = 256
    vocab: int = 4096


class Pico(nn.Module):
    """A GPT-2 with learned positions, tied embedding, tanh-GELU and pre-LayerNorm."""

    def __init__(self, shape: Shape) -> None:
        """Draw the weights from torch's global generator; matrices that write to the residual start at 0."""
        super().__init__()
        self.shape = shape
        layers, d = shape.n_layer, shape.d_model
        self.wte = nn.Parameter(torch.randn(shape.vocab, d) * 0.02)
        self.wpe = nn.Parameter(torch.randn(shape.n_ctx, d) * 0.01)
        self.qkv = nn.Parameter(torch.randn(layers, d, 3 * d) * d**-0.5)
        self.attn_out = nn.Parameter(torch.zeros(layers, d, d))
        self.mlp_in = nn.Parameter(torch.randn(layers, d, 4 * d) * d**-0.5)
        self.mlp_out = nn.Parameter(torch.zeros(layers, 4 * d, d))
        self.qkv_b = nn.Parameter(torch.zeros(layers, 3 * d))
        self.attn_out_b = nn.Parameter(torch.zeros(layers, d))
        self.mlp_in_b = nn.Parameter(torch.zeros(layers, 4 * d))
        self.mlp_out_b = nn.Parameter(torch.zeros(layers, d))
        self.norms = nn.Parameter(torch.ones(2 * layers + 1, d))
        self.norm_b = nn.Parameter(torch.zeros(2 * layers + 1, d))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the normalised last residual, [batch, seq] -> [batch, seq, d_model]."""
        batch, seq = ids.shape
        x = (self.wte[ids] + self.wpe[:seq]).view(batch * seq, -1)
        norms = _pairs(self.norms, self.norm_b)
        linear = {name: _pairs(getattr(self, f"{name}_b"), getattr(self, name)) for name in MATRICES}
        for layer in range(self.shape.n_layer):
            qkv = _linear(_norm(x, norms[2 * layer]), linear["qkv"][layer])
            x = x + _linear(self._attention(qkv, batch), linear["attn_out"][layer])
            hidden = _linear(_norm(x, norms[2 * layer + 1]), linear["mlp_in"][layer])
            x = x + _linear(gelu(hidden, approximate="tanh"), linear["mlp_out"][layer])
        return _norm(x, norms[-1]).view(batch, seq, -1)

    def _attention(self, qkv: Tensor, batch: int) -> Tensor:
        heads, d_head = self.shape.n_head, self.shape.d_model // self.shape.n_head
        q, k, v = qkv.view(batch, -1, 3, heads, d_head).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(qkv.shape[0], -1)


def _pairs(first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Unbind two stacks; indexing them per layer would allocate a full-size gradient for each layer."""
    return list(zip(first.unbind(0), second.unbind(0), strict=True))


def _norm(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    return layer_norm(x, x.shape[-1:], *affine, 1e-5)


def _linear(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    bias, weight = affine
    return torch.addmm(bias, x, weight)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of tied logits, in chunks whose logits and gradient fit into the CPU's cache."""

    @staticmethod
    def forward(ctx, hidden: Tensor, wte: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
        """[n, d], [vocab, d], [n] -> mean of -ln P in nats."""
        total = hidden.new_zeros(())
        d_hidden, d_wte = torch.empty_like(hidden), torch.zeros_like(wte)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows, wanted = hidden[part], targets[part, None]
            logits = rows @ wte.T
            log_z = logits.logsumexp(-1, keepdim=True)
            total += (log_z - logits.gather(1, wanted)).sum()
            slope = logits.sub_(log_z).exp_()
            slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, -1.0))
            d_hidden[part] = slope @ wte
            d_wte.addmm_(slope.T, rows)
        ctx.save_for_backward(d_hidden, d_wte)
        ctx.count = len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the gradients that the forward pass computed."""
        d_hidden, d_wte = ctx.saved_tensors
        scale = grad / ctx.count
        return d_hidden * scale, d_wte * scale, None, None


def orthogonalised(stack: Tensor, steps: int = 5) -> Tensor:
    """Approximate the closest orthogonal matrix of each in `stack` [n, rows, cols], by Newton-Schulz."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.mT if stack.shape[1] > stack.shape[2] else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if stack.shape[1] > stack.shape[2] else x


class StackedMuon:
    """Muon (Jordan et al., 2024) over stacks of matrices [layers, fan_in, fan_out], in fp32.

    `torch.optim.Muon` takes one matrix at a time and iterates in bf16, which is slow without bf16 units.
    """

    def __init__(self, stacks: dict[str, nn.Parameter], momentum: float = 0.95, decay: float = 0.1) -> None:
        """Take `stacks` by name; q, k and v are orthogonalised separately."""
        self.stacks, self.momentum, self.decay = stacks, momentum, decay
        self.buffers = {name: torch.zeros_like(stack) for name, stack in stacks.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Do one Nesterov step of learning rate `lr`, with decoupled weight decay."""
        for name, stack in self.stacks.items():
            buffer = self.buffers[name].lerp_(stack.grad, 1 - self.momentum)
            update = _matrices(name, stack.grad.lerp(buffer, self.momentum))
            scale = max(1.0, update.shape[2] / update.shape[1]) ** 0.5
            stack.mul_(1 - lr * self.decay).sub_(
                _unmatrices(name, orthogonalised(update), stack) * (lr * scale)
            )


def _matrices(name: str, stack: Tensor) -> Tensor:
    if name != "qkv":
        return stack
    layers, d, _ = stack.shape
    return stack.view(layers, d, 3, d).transpose(1, 2).reshape(3 * layers, d, d)


def _unmatrices(name: str, update: Tensor, like: Tensor) -> Tensor:
    if name != "qkv":
        return update
    layers, d, _ = like.shape
    return update.view(layers, 3, d, d).transpose(1, 2).reshape(like.shape)


def hf_state(model: Pico) -> dict[str, Tensor]:
    """Return the weights under the names of Hugging Face's `GPT2LMHeadModel`, without the tied head."""
    state = {"transformer.wte.weight": model.wte, "transformer.wpe.weight": model.wpe}
    stacks = {"attn.c_attn": "qkv", "attn.c_proj": "attn_out", "mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out"}
    for layer in range(model.shape.n_layer):
        for theirs, ours in stacks.items():
            state[f"transformer.h.{layer}.{theirs}.weight"] = getattr(model, ours)[layer]
            state[f"transformer.h.{layer}.{theirs}.bias"] = getattr(model, f"{ours}_b")[layer]
        for number in (1, 2):
            state[f"transformer.h.{layer}.ln_{number}.weight"] = model.norms[2 * layer + number - 1]
            state[f"transformer.h.{layer}.ln_{number}.bias"] = model.norm_b[2 * layer + number - 1]
    state["transformer.ln_f.weight"], state["transformer.ln_f.bias"] = model.norms[-1], model.norm_b[-1]
    return {name: weight.detach().clone().contiguous() for name, weight in state.items()}
