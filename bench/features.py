"""Time and memory of one pass of `task=analyse` over text, against encoding the same batches alone.

    python bench/features.py [--json FILE]                12,288 features, a million tokens, k = 16 and 64
    python bench/features.py --tokens 50000 --k 64        a quick look

The residuals are those of six layers of the bundled gpt2-pico, side by side: 768 dimensions. The features are
residuals of other tokens of the text, less their mean, at norms that vary as exp(0.3 x normal), so that some
fire on a tenth of the tokens and some on few or none. Both sides of the ratio take each batch in turn, in
this process; passes of the language model are in neither. `results` is the time of all statistics at the
end, co-firing partners among them. Peak memory is that of the process so far, the language model included.
"""

import argparse
import json
import logging
import platform
import resource
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recorded import BUNDLED
from timing import positive, seconds, sizes
from torch import Tensor

from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.analysis.cofiring import partners
from sae_sweep.analysis.features import FeatureAnalysis, Subject
from sae_sweep.analysis.losses import BATCH_TOKENS
from sae_sweep.config import EmbeddedDataset, ModelConfig, PackingConfig, TopKConfig
from sae_sweep.saes import SAE, build_sae
from sae_sweep.store import cache_folder
from sae_sweep.text import TrainingSequences, open_text, token_mask

LAYERS = (3, 4, 5, 6, 7, 8)
_NORM_SPREAD = 0.3
DECILES = [tenth / 10 for tenth in range(1, 10)]


class Batches:
    """Batches of the text: token ids, which of them count, and their residuals; the same at every reading."""

    def __init__(self, lm: LanguageModel, seq_len: int, tokens: int) -> None:
        packing = PackingConfig(seq_len=seq_len)
        source = open_text(EmbeddedDataset(name="stdlib_code"), cache_folder(None))
        sequences = TrainingSequences(source, packing, lm.tokenizer, 0).read(-(-tokens // seq_len))
        keep = token_mask(sequences, lm.tokenizer.special_ids, packing)
        self.seq_len, self._lm = seq_len, lm
        size = max(1, BATCH_TOKENS // seq_len)
        self._ids = torch.from_numpy(sequences).long().split(size)
        self._keep = torch.from_numpy(keep).split(size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for ids, keep in zip(self._ids, self._keep, strict=True):
            ids, keep = ids.to(self._lm.device), keep.to(self._lm.device)
            found = self._lm.residuals(ids, LAYERS)
            yield ids, keep, torch.cat([found[layer] for layer in LAYERS], -1)


def sae_of_residuals(batches: Batches, d_sae: int, k: int) -> SAE:
    """An SAE whose features are normalised residuals of every other token, less their mean."""
    parts: list[Tensor] = []
    for _, keep, x in batches:
        parts.append(x[keep].float()[::2])
        if sum(map(len, parts)) >= d_sae:
            break
    x = torch.cat(parts)[:d_sae]
    sae = build_sae(TopKConfig(k=k), x.shape[1], len(x), seed=0, numerics="modern").to(x.device)
    inputs = sae.normalise(x).x
    sae.b_dec.copy_(inputs.mean(0))
    sae.W_dec.copy_(torch.nn.functional.normalize(inputs - sae.b_dec))
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    sae.W_enc.copy_(sae.W_dec.t() * torch.exp(_NORM_SPREAD * noise))
    return sae.eval()


def measure(batches: Batches, sae: SAE, k: int, vocabulary: int) -> dict[str, Any]:
    device = sae.W_dec.device
    analysis = FeatureAnalysis(Subject(sae, 0), batches.seq_len, vocabulary)
    encoding = passing = 0.0
    first = 0
    for ids, keep, x in batches:
        encoding += seconds(partial(sae.encode, x[keep].float()), device)
        passing += seconds(partial(analysis.update, ids, keep, x, first), device)
        first += len(ids)
    results = seconds(partial(_results, analysis), device)
    tokens = int(analysis.firing.tokens.sum())
    fired = analysis.firing.fired
    return {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": k,
        "tokens": tokens,
        "l0": float(fired.sum()) / tokens,
        "alive": int((fired > 0).sum()),
        "densest": float(fired.max()) / tokens,
        "quantiles_exact": analysis.quantiles.exact,
        "codes_tokens": len(analysis.codes.positions),
        "encode_seconds": encoding,
        "pass_seconds": passing,
        "results_seconds": results,
        "ratio_to_encode": passing / encoding,
        "ratio_with_results": (passing + results) / encoding,
        "peak_mib": _peak_mib(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _results(analysis: FeatureAnalysis) -> None:
    """Everything that task=analyse takes from a pass."""
    analysis.firing.by_feature()
    analysis.firing.by_position()
    analysis.quantiles.quantiles(DECILES)
    analysis.token_sums.shares()
    analysis.token_sums.by_mean(10, 2)
    partners(analysis.codes, 10)


def _peak_mib() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


_COLUMNS = "{:>6} {:>4} {:>9} {:>7} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=BUNDLED, help="folder or GGUF file of a language model")
    parser.add_argument("--tokens", type=positive, default=1_000_000)
    parser.add_argument("--seq-len", type=positive, default=128)
    parser.add_argument("--d-sae", type=positive, default=12_288)
    parser.add_argument("--k", type=sizes, default=[16, 64], help="comma-separated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the records there")
    keys = parser.parse_args()
    logging.disable(logging.WARNING)
    lm = load_language_model(ModelConfig(path=keys.model), pick_device(keys.device))
    batches = Batches(lm, keys.seq_len, keys.tokens)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {lm.device}")
    print(
        _COLUMNS.format(
            *("d_sae", "k", "tokens", "alive", "encode s", "pass s", "results s"),
            *("ratio", "with res.", "peak MiB"),
        )
    )
    records = []
    for k in keys.k:
        record = measure(batches, sae_of_residuals(batches, keys.d_sae, k), k, lm.sizes.vocabulary)
        records.append(record)
        shown = (*(record[name] for name in ("d_sae", "k", "tokens", "alive")),)
        times = (f"{record[name]:.1f}" for name in ("encode_seconds", "pass_seconds", "results_seconds"))
        ratios = (f"{record[name]:.2f}x" for name in ("ratio_to_encode", "ratio_with_results"))
        print(_COLUMNS.format(*shown, *times, *ratios, f"{record['peak_mib']:.0f}"), flush=True)
    if keys.json:
        keys.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
