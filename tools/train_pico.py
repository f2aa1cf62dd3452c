"""Train gpt2-pico, the bundled language model, on the embedded corpora, in about an hour on two CPU cores.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python tools/train_pico.py all --work runs/pico

The steps are `prepare` (tokenizer and token ids), `train` (resumes from its checkpoint), `export` (the
Hugging Face folder) and `card` (evaluation against n-gram models, and MODEL_CARD.md). With the two variables
the process keeps freed memory; without them a tenth of the time goes into page faults.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pico_card
import pico_data
import torch
from pico_export import export
from pico_model import MATRICES, ChunkedCrossEntropy, Pico, Shape, StackedMuon
from torch import Tensor

log = logging.getLogger("train_pico")

ASSETS = Path(__file__).parents[1] / "sae_sweep" / "assets" / "gpt2-pico"
WARMUP, DECAY = 0.02, 0.75
"""Shares of the training over which learning rates rise at its start and fall to 0 at its end."""
CLIP = 1.0
LOG_EVERY_STEPS, WATCH_EVERY_STEPS, WATCH_SEQUENCES = 20, 300, 24
CHECKPOINT_EVERY_S, EXPORT_EVERY_S = 180, 900


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["all", "prepare", "train", "export", "card"])
    parser.add_argument("--work", type=Path, required=True, help="folder for token ids, checkpoint and log")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "sae_sweep", help="folder for corpora"
    )
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for the finished model")
    parser.add_argument("--intermediate", type=Path, help="folder to export to every 15 minutes")
    parser.add_argument(
        "--tokens", type=int, default=14_000_000, help="training tokens, including the opening ones"
    )
    parser.add_argument("--batch", type=int, default=16, help="sequences of 256 tokens per step")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Trainer:
    """The state of a training run: model, both optimisers, and the order of the data."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Draw the model from the seed, and the order of all its sequences."""
        torch.manual_seed(args.seed)
        self.args = args
        self.model = Pico(Shape())
        self.muon = StackedMuon({name: getattr(self.model, name) for name in MATRICES})
        others = [p for name, p in self.model.named_parameters() if name not in MATRICES]
        self.adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        rows = {
            name: pico_data.sequences(i, 0) for name, i in pico_data.token_ids(args.work, "train").items()
        }
        self.rows = np.concatenate(list(rows.values()))
        self.steps = args.tokens // (args.batch * pico_data.SEQUENCE)
        counts = {name: len(part) for name, part in rows.items()}
        self.order = pico_data.training_order(counts, self.steps * args.batch + len(counts), args.seed)
        self.step, self.seconds = 0, 0.0
        self.checkpoint = args.work / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {"model": self.model.state_dict(), "muon": self.muon.buffers, "adam": self.adam.state_dict()}
        torch.save(
            {**state, "step": self.step, "seconds": self.seconds}, self.checkpoint.with_suffix(".part")
        )
        os.replace(self.checkpoint.with_suffix(".part"), self.checkpoint)

    def load(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.buffers.update(state["muon"])
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("continuing from step %d of %d", self.step, self.steps)

    def train_step(self) -> float:
        """Do one step; return the batch's mean loss in nats."""
        size = self.args.batch
        ids = torch.from_numpy(
            self.rows[self.order[self.step * size : (self.step + 1) * size]].astype(np.int64)
        )
        loss = cross_entropy(self.model, ids)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        share = schedule(self.step / self.steps)
        self.muon.step(self.args.muon_lr * share)
        self.adam.param_groups[0]["lr"] = self.args.adam_lr * share
        self.adam.step()
        self.step += 1
        return loss.item()


def cross_entropy(model: Pico, ids: Tensor) -> Tensor:
    """Return the mean of -ln P over all tokens except the opening ones, [batch, seq] -> scalar."""
    hidden = model(ids)[:, :-1].reshape(-1, model.shape.d_model)
    return ChunkedCrossEntropy.apply(hidden, model.wte, ids[:, 1:].reshape(-1))


def schedule(share: float) -> float:
    """Return the factor on the learning rates after a `share` of the training."""
    return min(1.0, (share + 1e-3) / WARMUP, (1 - share) / DECAY)


def watch(model: Pico, work: Path) -> dict[str, float]:
    """Return the held-out loss per corpus, on a few sequences spread over it."""
    losses = {}
    with torch.no_grad():
        for name, ids in pico_data.token_ids(work, "held_out").items():
            rows = pico_data.sequences(ids, 0)
            some = rows[np.linspace(0, len(rows) - 1, WATCH_SEQUENCES).astype(int)].astype(np.int64)
            losses[name] = round(cross_entropy(model, torch.from_numpy(some)).item(), 4)
    return losses


def train(args: argparse.Namespace) -> None:
    """Train to the end of the token budget, with a log in loss.jsonl and checkpoints."""
    trainer = Trainer(args)
    trainer.load()
    settings = {key: str(value) for key, value in vars(args).items()}
    (args.work / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    started = saved = exported = time.monotonic()
    before, recent = trainer.seconds, []
    while trainer.step < trainer.steps:
        recent.append(trainer.train_step())
        now = time.monotonic()
        trainer.seconds = before + now - started
        if trainer.step % LOG_EVERY_STEPS == 0 or trainer.step == trainer.steps:
            log_step(trainer, recent)
            recent = []
        if now - saved > CHECKPOINT_EVERY_S:
            trainer.save()
            saved = now
        if args.intermediate and now - exported > EXPORT_EVERY_S:
            export(trainer.model, args.work, args.intermediate)
            exported = now
    trainer.save()


def log_step(trainer: Trainer, recent: list[float]) -> None:
    """Append a line to loss.jsonl, with held-out losses every `WATCH_EVERY_STEPS`."""
    tokens = trainer.step * trainer.args.batch * pico_data.SEQUENCE
    line = {
        "step": trainer.step,
        "tokens": tokens,
        "seconds": round(trainer.seconds, 1),
        "loss": round(float(np.mean(recent)), 4),
    }
    if trainer.step % WATCH_EVERY_STEPS == 0 or trainer.step == trainer.steps:
        line["held_out"] = watch(trainer.model, trainer.args.work)
    with (trainer.args.work / "loss.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info("%s of %d steps, %.0f tokens/s", line, trainer.steps, tokens / trainer.seconds)


def finished_model(work: Path) -> Pico:
    """Return the model of the checkpoint."""
    model = Pico(Shape())
    model.load_state_dict(torch.load(work / "checkpoint.pt", weights_only=True)["model"])
    return model


def steps(args: argparse.Namespace) -> Iterator[str]:
    """Yield the names of the steps that the command line asks for."""
    yield from ["prepare", "train", "export", "card"] if args.step == "all" else [args.step]


def main() -> None:
    """Run the steps."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    for step in steps(args):
        if step == "prepare":
            pico_data.prepare(args.cache, args.work)
        elif step == "train":
            train(args)
        elif step == "export":
            export(finished_model(args.work), args.work, args.out)
        else:
            pico_card.write(args.work, args.out)


if __name__ == "__main__":
    main()
