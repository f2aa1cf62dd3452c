"""Time of one training step: ours against that of other projects' own trainers.

    python bench/peers.py --peer saelens=PYTHON --peer dictionary_learning=PYTHON --peer sparsify=PYTHON

Each PYTHON is the interpreter of an environment with that project and torch, preferably the torch version
used here (versions are printed, but may differ):

    python -m venv ~/saelens && ~/saelens/bin/pip install torch sae-lens
    python -m venv ~/dictionary_learning && ~/dictionary_learning/bin/pip install torch dictionary-learning
    python -m venv ~/sparsify && ~/sparsify/bin/pip install torch eai-sparsify

A peer without an interpreter, or whose interpreter lacks it, is skipped. `study` needs none: it is the
study's trainer, re-derived in tests/saes/study_reference.py.

A peer's trainer runs in its own process. For every row the two sides take turns, one step each, so that
only one computes at a time; figures are medians over `--repeats` such pairs, after 2 warm-up pairs. Both
sides have the same batch (already normalised per token), initial weights, thresholds (JumpReLU: set so that
L0 is `--l0`), Adam in float32, gradient clipping where the peer has it, AuxK on but no dead features, and a
learning rate too small to change any of this. Before timing, both must report the same error and L0.

What a step is, and where the work differs:

    ours                 Learner.step: normalises (again), loss, backward, clip, Adam, decoder rows, and the
                         metrics that training logs, which no peer computes in its step
    saelens              SAETrainer.step. Scales latents by decoder norms instead of keeping rows at norm 1,
                         so it neither projects the gradient nor rescales rows. Counts how often each
                         feature fires. `sparse`: its option use_sparse_activations, without the scaling by
                         decoder norms, which has no gradient with it; `autocast`: its option to compute in
                         bfloat16, while ours stays in float32
    dictionary_learning  Trainer.update. JumpReLU: penalises the distance of L0 to a target, and applies its
                         step function to the latents; `autocast` (CUDA): as in its trainSAE
    sparsify             Trainer.fit as a whole, including a progress bar and the two copies of the batch that
                         its token masking makes. TopK only; no gradient clipping, so ours has none here;
                         AuxK off (its default). torch's Adam instead of the 8-bit one that it prefers.
                         Always computes in bfloat16 on CUDA
    study                its own formulas, ours in `numerics=study`: no encoder bias in TopK and BatchTopK,
                         rows set to norm 1 before Adam, log thresholds. Normalises the batch too

Clipping: our error is a mean over d_in, that of saelens and dictionary_learning a sum, so clipping may scale
their gradient and only measure ours. The batch is the same at every step.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peer_pairs import (
    ARCHITECTURES,
    PEER_SPECS,
    MissingPeerError,
    PeerError,
    Row,
    Setting,
    backend_of,
    measure,
    start_of,
)
from recorded import BUNDLED, Recorded, load, record
from safetensors.torch import save_file

from sae_sweep.config import SaeSweepError, TopKConfig
from sae_sweep.saes import build_sae

LAYERS = [3, 4, 5, 6, 7, 8]

_COLUMNS = "{:10} {:20} {:11} {:>9} {:>9} {:>9} {:>9} {:>7} {:>13} {:>6} {:>6}"
_HEADS = (
    *("", "peer", "version", "ms", "its ms", "tokens/s", "its", "ratio", "lowest-highest", "L0", "its"),
)


def show(r: dict[str, Any]) -> None:
    print(
        _COLUMNS.format(
            *(r["architecture"], r["peer"], r["version"]),
            *(f"{1e3 * r['seconds']:.1f}", f"{1e3 * r['peer_seconds']:.1f}"),
            *(f"{r['tokens_per_s']:,.0f}", f"{r['peer_tokens_per_s']:,.0f}", f"{r['ratio_to_peer']:.2f}x"),
            f"{r['ratio_to_peer_lowest']:.2f}-{r['ratio_to_peer_highest']:.2f}",
            *(f"{r['l0']:.1f}", f"{r['peer_l0']:.1f}"),
        ),
        flush=True,
    )


def show_torch(records: Sequence[dict[str, Any]]) -> None:
    """Prints the peers that ran on another torch version than ours."""
    for peer, theirs in dict.fromkeys((r["peer"], r["peer_torch"]) for r in records):
        if theirs != torch.__version__:
            print(f"{peer} ran on torch {theirs}")


def show_best(records: Sequence[dict[str, Any]]) -> None:
    """Prints the fastest peer of each architecture, by its ratio to ours."""
    for architecture in dict.fromkeys(r["architecture"] for r in records):
        best = min(
            (r for r in records if r["architecture"] == architecture), key=lambda r: r["ratio_to_peer"]
        )
        print(f"{architecture}: {best['ratio_to_peer']:.2f} times the best peer, {best['peer']}")


def rows(architectures: Sequence[str], peers: Collection[str], device: str) -> Iterator[Row]:
    """Rows to compare; prints those that cannot be. A peer may be removed from `peers` on the way."""
    for architecture in architectures:
        for peer in tuple(peers):
            if architecture not in PEER_SPECS[peer].architectures:
                print(f"{architecture} {peer}: skipped, it has none")
                continue
            for variant in _variants(architecture, peer, device):
                if peer not in peers:
                    break
                if variant == "autocast" and not fast_bfloat16(device):
                    print(f"{architecture} {peer} autocast: skipped, this processor is not fast at bfloat16")
                    continue
                yield Row(architecture, peer, variant)


def _variants(architecture: str, peer: str, device: str) -> tuple[str, ...]:
    """Variants in which a peer can be run."""
    if peer == "saelens":
        return ("default", "sparse", "autocast") if architecture == "topk" else ("default", "autocast")
    # on a CPU its trainSAE never computes in bfloat16
    return ("default", "autocast") if peer == "dictionary_learning" and device == "cuda" else ("default",)


def fast_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def run(keys: argparse.Namespace, setting: Setting) -> tuple[list[dict[str, Any]], int]:
    """Measures all rows; returns their records and the number that failed."""
    pythons = _pythons(keys)
    start = start_of(setting)
    records, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        tensors = Path(folder) / "start.safetensors"
        save_file({"x": setting.x.cpu(), **{n: t.contiguous() for n, t in vars(start).items()}}, tensors)
        print(_COLUMNS.format(*_HEADS))
        for row in rows(keys.architectures, pythons, setting.device):
            try:
                records.append(measure(row, setting, start, tensors, pythons[row.peer]))
            except MissingPeerError as error:
                print(f"{row.peer}: skipped, {error}", flush=True)
                del pythons[row.peer]
            except PeerError as error:
                failed += 1
                print(f"{row.architecture} {row.label}: failed, {error}", flush=True)
            else:
                show(records[-1])
    return records, failed


def _pythons(keys: argparse.Namespace) -> dict[str, str]:
    """Interpreter of each peer that has one; prints the peers without."""
    known = {"study": sys.executable, **keys.peer}
    for peer in keys.peers:
        if peer not in known:
            package = PEER_SPECS[peer].package
            print(f"{peer}: skipped; pip install {package} in its own environment, and --peer {peer}=PYTHON")
    return {peer: known[peer] for peer in keys.peers if peer in known}


def _batch(keys: argparse.Namespace) -> Recorded:
    if keys.activations is not None:
        found = load(keys.activations, keys.d_in)
    else:
        found = record(BUNDLED, LAYERS, keys.batch, keys.d_in)
    if len(found.x) < keys.batch:
        raise SaeSweepError(f"{found.label}: {len(found.x)} tokens, and --batch is {keys.batch}")
    return found


def _setting(keys: argparse.Namespace, recorded: Recorded) -> Setting:
    raw = recorded.x[: keys.batch]
    some = build_sae(TopKConfig(k=1), keys.d_in, 1, seed=0, numerics="modern")
    x = some.normalise(raw).x.detach().contiguous().to(keys.device)
    return Setting(x, keys.d_sae, keys.k, keys.l0, keys.device, keys.backend, keys.repeats)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="a peer's interpreter"
    )
    parser.add_argument("--peers", default=",".join(PEER_SPECS), help="comma-separated")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="comma-separated")
    parser.add_argument("--activations", type=Path, help="a safetensors file with raw residuals, [tokens, d]")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=12_288)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--l0", type=float, default=45.0, help="L0 of JumpReLU")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--backend", default="auto", help="our backend")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the records there")
    return parser


def _keys() -> argparse.Namespace:
    parser = _parser()
    keys = parser.parse_args()
    keys.peers, keys.architectures = keys.peers.split(","), keys.architectures.split(",")
    for given, known in ((keys.peers, PEER_SPECS), (keys.architectures, ARCHITECTURES)):
        for name in given:
            if name not in known:
                parser.error(f"{name}: not one of {', '.join(known)}")
    if max(keys.k, keys.l0) >= keys.d_sae:
        parser.error(f"--k {keys.k} and --l0 {keys.l0:g}: must be below --d-sae {keys.d_sae}")
    if keys.activations is not None and not keys.activations.is_file():
        parser.error(f"--activations {keys.activations}: no file there")
    try:
        keys.peer = dict(_interpreter(text) for text in keys.peer)
    except ValueError as error:
        parser.error(str(error))
    return keys


def _interpreter(text: str) -> tuple[str, str]:
    name, _, python = text.partition("=")
    if name not in PEER_SPECS:
        raise ValueError(f"--peer {text}: {name} is not one of {', '.join(PEER_SPECS)}")
    if not Path(python).is_file():
        raise ValueError(f"--peer {text}: no interpreter there")
    return name, python


def main() -> None:
    keys = _keys()
    logging.disable(logging.WARNING)
    try:
        recorded = _batch(keys)
        setting = _setting(keys, recorded)
        print(f"{recorded.label}; {keys.batch} tokens, normalised; d_sae {keys.d_sae}, k {keys.k}")
        print(
            f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"{setting.device}, backend {backend_of(setting)}"
        )
        records, failed = run(keys, setting)
    except SaeSweepError as error:
        sys.exit(f"peers.py: {error}")
    show_torch(records)
    show_best(records)
    if keys.json:
        keys.json.write_text(json.dumps(records, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
