"""Score an exported pico and n-grams of its training text on the held-out text of every corpus."""

import json
import logging
from pathlib import Path

import numpy as np
import pico_data
import torch
from kn_trigram import KneserNeyTrigram, unigram_cross_entropy
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GPT2LMHeadModel

log = logging.getLogger("pico_eval")

STRIDE = 128
"""Tokens scored per window in strided scoring; each has at least 127 before it."""

PROMPTS = (
    "Return a new array with the same shape and type as",
    "def __init__(self, config):\n",
    'The "while" statement is used for',
)


def evaluate(work: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Return per corpus the mean of -ln P in nats per token, for the model in `folder` and its baselines.

    All score the same tokens once: the held-out text cut to full sequences, without their opening tokens. The
    n-grams read the text uninterrupted; the model starts over in every sequence ("model") or, with windows
    a stride apart, sees at least the last 127 tokens ("model_strided").
    """
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    train, vocab = pico_data.token_ids(work, "train"), model.config.vocab_size
    joint = np.concatenate(list(train.values()))
    trigram = KneserNeyTrigram(joint, vocab)
    scores = {}
    for name, ids in pico_data.token_ids(work, "held_out").items():
        rows = pico_data.sequences(ids, 0)
        tokens = rows[:, 1:].reshape(-1).astype(np.int64)
        opened = np.concatenate([[0, 0], tokens])
        scores[name] = {
            "tokens": len(tokens),
            "unigram": unigram_cross_entropy(joint, tokens, vocab),
            "trigram": trigram.cross_entropy(opened),
            "own_trigram": KneserNeyTrigram(train[name], vocab).cross_entropy(opened),
            "model": sequence_loss(model, rows),
            "model_strided": strided_loss(model, tokens),
        }
        log.info("%s: %s", name, scores[name])
    return scores


def sequence_loss(model: GPT2LMHeadModel, rows: np.ndarray) -> float:
    """Return the mean loss of all tokens except each row's first, rows [n, 256]."""
    return float(token_losses(model, rows).mean())


def strided_loss(model: GPT2LMHeadModel, tokens: np.ndarray) -> float:
    """Return the mean loss of `tokens` [n]; windows after the first score only their last `STRIDE`."""
    length = pico_data.SEQUENCE - 1
    starts = np.arange(0, max(len(tokens) - length, 0) + STRIDE, STRIDE)
    padded = np.concatenate([tokens, np.zeros(STRIDE + length, dtype=tokens.dtype)])
    windows = np.stack([padded[start : start + length] for start in starts])
    rows = np.concatenate([np.zeros((len(windows), 1), dtype=tokens.dtype), windows], axis=1)
    losses = token_losses(model, rows)
    scored = np.concatenate([losses[0], losses[1:, -STRIDE:].reshape(-1)])
    return float(scored[: len(tokens)].mean())


@torch.no_grad()
def token_losses(model: GPT2LMHeadModel, rows: np.ndarray, batch: int = 16) -> np.ndarray:
    """Return -ln P of every token except each row's first, [n, 256] -> [n, 255]."""
    losses = []
    for start in range(0, len(rows), batch):
        ids = torch.from_numpy(rows[start : start + batch].astype(np.int64))
        logits = model(ids, use_cache=False).logits[:, :-1]
        flat = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        losses.append(flat.view(len(ids), -1))
    return torch.cat(losses).numpy()


@torch.no_grad()
def samples(folder: Path, seed: int = 0) -> dict[str, str]:
    """Return continuations of `PROMPTS`, sampled at temperature 0.7 from the 50 likeliest tokens."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = {}
    for prompt in PROMPTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
        for _ in range(80):
            top, choice = model(ids).logits[0, -1].div(0.7).topk(50)
            picked = choice[torch.multinomial(top.softmax(-1), 1)]
            if picked.item() == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, picked[None]], dim=1)
        texts[prompt] = tokenizer.decode(ids[0, 1:])
    return texts


def write_evaluation(work: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Evaluate, and write evaluation.json into `work`."""
    scores = evaluate(work, folder)
    (work / "evaluation.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores
