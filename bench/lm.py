"""Tokens/s of the language model: of its pass up to a layer, per attention, and of tokenisation.

    python bench/lm.py [--json FILE]                                the bundled gpt2-pico
    python bench/lm.py --model SmolLM2.gguf --layers 12 --batch 16  another model

eager is TransformerBridge, which computes attention step by step; sdpa is the transformers model with fused
attention, which sweeps use where both give equal residuals. The two are timed in turn in this process, on
the same sequences of the standard library's documentation; medians of `--repeats` rounds. Tokenisation
reads, tokenises and packs that text; its share is of the time of tokenisation and LM pass together.
"""

import argparse
import json
import logging
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from timing import fail, positive, seconds, sizes

from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.config import EmbeddedDataset, ModelConfig, PackingConfig, SaeSweepError
from sae_sweep.store import cache_folder
from sae_sweep.text import TextSource, TrainingSequences, open_text


class Text:
    """The standard library's documentation, tokenised for a model."""

    def __init__(self, lm: LanguageModel, seq_len: int) -> None:
        self.source: TextSource = open_text(EmbeddedDataset(name="stdlib_docs"), cache_folder(None))
        self.packing = PackingConfig(seq_len=seq_len)
        self.lm = lm

    def stream(self) -> TrainingSequences:
        return TrainingSequences(self.source, self.packing, self.lm.tokenizer, data_seed=0)

    def sequences(self, count: int) -> torch.Tensor:
        return torch.from_numpy(self.stream().read(count)).long()

    def tokens_per_s(self, tokens: int, repeats: int) -> float:
        count = tokens // self.packing.seq_len
        self.stream().read(count)  # the first read builds the corpus
        cpu = torch.device("cpu")
        each = [seconds(lambda: self.stream().read(count), cpu) for _ in range(repeats)]
        return count * self.packing.seq_len / statistics.median(each)


def load(path: str, dtype: str, device: torch.device) -> dict[str, LanguageModel]:
    """Loads the model once per attention; sdpa is missing where it is not equal to eager."""
    both = [
        load_language_model(ModelConfig(path=path, dtype=dtype), device, fast=fast) for fast in (False, True)
    ]
    return {lm.attention: lm for lm in both}


def passes(
    models: dict[str, LanguageModel], tokens: torch.Tensor, layer: int, repeats: int
) -> dict[str, float]:
    """Median seconds of a pass up to a layer, per attention."""
    found: dict[str, list[float]] = {attention: [] for attention in models}
    for lm in models.values():
        lm.residuals(tokens, [layer])
    for _ in range(repeats):
        for attention, lm in models.items():
            found[attention].append(seconds(lambda lm=lm: lm.residuals(tokens, [layer]), lm.device))
    return {attention: statistics.median(times) for attention, times in found.items()}


def measure(keys: argparse.Namespace) -> list[dict[str, Any]]:
    device = pick_device("auto")
    records = []
    for dtype in keys.dtype:
        models = load(keys.model, dtype, device)
        lm = next(iter(models.values()))
        layers = keys.layers or sorted({lm.n_layers // 2, lm.n_layers - 1})
        lm.check(layers, keys.seq_len)
        text = Text(lm, keys.seq_len)
        tokenised = text.tokens_per_s(keys.text_tokens, keys.repeats)
        for layer in layers:
            for batch in keys.batch:
                tokens = text.sequences(batch)
                medians = passes(models, tokens, layer, keys.repeats)
                for attention, median in medians.items():
                    rate = tokens.numel() / median
                    record = {
                        "model": lm.name,
                        "layer": layer,
                        "attention": attention,
                        "dtype": str(lm.dtype).removeprefix("torch."),
                        "batch": batch,
                        "seq_len": keys.seq_len,
                        "device": str(device),
                        "seconds": median,
                        "tokens_per_s": rate,
                        "ratio_to_eager": medians["eager"] / median,
                        "tokenised_per_s": tokenised,
                        "tokenisation_share": rate / (rate + tokenised),
                    }
                    show(record)
                    records.append(record)
    return records


_COLUMNS = "{:22} {:>5} {:>9} {:>9} {:>6} {:>8} {:>9} {:>7} {:>12}"


def show(r: dict[str, Any]) -> None:
    print(
        _COLUMNS.format(
            *(r["model"][:22], r["layer"], r["attention"], r["dtype"], r["batch"]),
            *(f"{1e3 * r['seconds']:.0f}", f"{r['tokens_per_s']:,.0f}", f"{r['ratio_to_eager']:.2f}x"),
            f"{r['tokenisation_share']:.1%}",
        ),
        flush=True,
    )


def layer_list(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def dtypes(text: str) -> list[str]:
    problems = [problem for word in text.split(",") for problem in ModelConfig(dtype=word).problems()]
    if problems:
        raise argparse.ArgumentTypeError("; ".join(problems))
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled:gpt2-pico", help="folder, GGUF file, or hub model")
    parser.add_argument(
        "--layers", type=layer_list, help="comma-separated; by default the middle and the last"
    )
    parser.add_argument("--batch", type=sizes, default=[16, 64], help="sequences per pass (default 16,64)")
    parser.add_argument("--seq-len", type=positive, default=128)
    parser.add_argument(
        "--dtype", type=dtypes, default=["auto"], help="comma-separated: auto, float32, bfloat16, float16"
    )
    parser.add_argument("--text-tokens", type=positive, default=200_000, help="tokens to tokenise")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", type=Path, help="write the records there")
    keys = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        _COLUMNS.format(
            *("model", "layer", "attention", "dtype", "batch"),
            *("ms", "tokens/s", "eager", "tokenisation"),
        )
    )
    try:
        records = measure(keys)
    except SaeSweepError as error:
        fail(error)
    if keys.json:
        keys.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
