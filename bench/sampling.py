"""Tokens/s of text that a model samples from BOS alone, against transformers' `generate`.

    python bench/sampling.py [--json FILE]                         the bundled gpt2-pico
    python bench/sampling.py --model FOLDER --documents 32         another model

Both sample documents from the same weights in float32, at temperature 1 and from all tokens, until each ends
or has `--longest` tokens, in turn in this process. Tokens are those before a document's end. Medians of
`--repeats` rounds, each with another seed; the ratio is that of the medians.
"""

import argparse
import json
import logging
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from recorded import BUNDLED
from timing import fail, positive, seconds
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.activations.model_files import download, local_path
from sae_sweep.activations.sampling import sample
from sae_sweep.config import ModelConfig, SaeSweepError


class Sampler:
    """Samples documents with `task=generate`'s sampler; a call returns the number of their tokens."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def __call__(self, documents: int, longest: int, seed: int) -> int:
        return sum(len(one.tokens) for one in sample(self._lm, documents, longest, (seed, 0)))


class Generate:
    """Samples the same with transformers."""

    def __init__(self, lm: LanguageModel, folder: Path) -> None:
        self._lm = lm
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._network: Any = network.to(lm.device)

    def __call__(self, documents: int, longest: int, seed: int) -> int:
        torch.manual_seed(seed)
        tokenizer = self._lm.tokenizer
        begin = torch.full((documents, 1), tokenizer.bos_id, device=self._lm.device)
        found = self._network.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            max_length=longest,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=tokenizer.eot_id,
            pad_token_id=tokenizer.eot_id,
        )
        return int((found[:, 1:] != tokenizer.eot_id).sum())


def tokens_per_s(
    work: Sampler | Generate, keys: argparse.Namespace, seed: int, device: torch.device
) -> float:
    """Tokens/s of a round."""
    tokens: list[int] = []
    took = seconds(lambda: tokens.append(work(keys.documents, keys.longest, seed)), device)
    return tokens[0] / took


def measure(lm: LanguageModel, folder: Path, keys: argparse.Namespace) -> list[dict[str, Any]]:
    """A record of each sampler; they are timed in turn after a short round of each."""
    samplers = {"generate": Generate(lm, folder), "sample": Sampler(lm)}
    rates: dict[str, list[float]] = {name: [] for name in samplers}
    for work in samplers.values():
        work(keys.documents, 8, 0)
    for seed in range(keys.repeats):
        for name, work in samplers.items():
            rates[name].append(tokens_per_s(work, keys, seed, lm.device))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return [
        {
            "model": lm.name,
            "sampler": name,
            "documents": keys.documents,
            "longest": keys.longest,
            "tokens_per_s": median,
            "ratio_to_generate": median / medians["generate"],
            "device": lm.device.type,
            "threads": torch.get_num_threads(),
        }
        for name, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=BUNDLED, help="folder of a language model")
    parser.add_argument("--documents", type=positive, default=256)
    parser.add_argument("--longest", type=positive, default=256, help="tokens of a document, BOS included")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the records there")
    keys = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        config = ModelConfig(path=keys.model, dtype="float32")
        lm = load_language_model(config, pick_device(keys.device))
        keys.longest = min(keys.longest, lm.n_ctx)
        records = measure(lm, local_path(config) or download(config), keys)
    except SaeSweepError as error:
        fail(error)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {lm.device}")
    for one in records:
        print(
            f"{one['model']}: {one['sampler']:<9} {one['tokens_per_s']:>9,.0f} tokens/s  "
            f"{one['ratio_to_generate']:.2f}x, {keys.documents} documents of at most {keys.longest} tokens"
        )
    if keys.json:
        keys.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
