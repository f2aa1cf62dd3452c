"""Runs the real sparsify and dictionary_learning; started with an interpreter that has them, not by pytest.

    python foreign_oracle.py FOLDER

Makes one SAE of each kind with the library's own classes, each in a folder below FOLDER. Beside its files,
`answer.safetensors` holds activations `x` [n, d_in], and `features` [n, d_sae] and `reconstruction` [n, d_in]
that the library computes after it loaded the files again.
"""

import json
import os
import sys
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its decoder would need a GPU; read as it is imported

import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

D_IN, D_SAE, K = 32, 128, 8


def sparsify(folder: Path, x: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    coder = SparseCoder(D_IN, SparseCoderConfig(activation=activation, expansion_factor=4, k=K))
    _scatter(coder)
    coder.save_to_disk(folder)
    coder = SparseCoder.load_from_disk(folder)
    found = coder.encode(x)
    features = torch.zeros(len(x), D_SAE).scatter(1, found.top_indices, found.top_acts)
    return features, coder(x).sae_out


def dictionary_learning(folder: Path, x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    sized = {"AutoEncoderTopK": AutoEncoderTopK, "BatchTopKSAE": BatchTopKSAE}
    if name == "MatryoshkaBatchTopKSAE":
        made = MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [32, 96])
    else:
        made = sized[name](D_IN, D_SAE, K) if name in sized else getattr(dictionary, name)(D_IN, D_SAE)
    _scatter(made)
    if hasattr(made, "k"):
        made.threshold.fill_(1.0)
    folder.mkdir(parents=True)
    trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "lm_name": "gpt2"}
    trainer |= {"k": K} if hasattr(made, "k") else {}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save(made.state_dict(), folder / "ae.pt")
    loaded, _ = load_dictionary(str(folder), "cpu")
    return loaded.encode(x), loaded(x)


@torch.no_grad()
def _scatter(module: torch.nn.Module) -> None:
    """Move every parameter off its initial value, so that no bias is zero and no row of unit norm."""
    for parameter in module.parameters():
        parameter += 0.3 * torch.randn_like(parameter)


def main(root: Path) -> None:
    torch.manual_seed(3)
    x = torch.randn(200, D_IN) * 2 + 0.5
    kinds = {f"sparsify_{one}": (sparsify, one) for one in ("topk", "groupmax")}
    names = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK")
    kinds |= {one: (dictionary_learning, one) for one in (*names, "BatchTopKSAE", "MatryoshkaBatchTopKSAE")}
    for label, (make, name) in kinds.items():
        with torch.no_grad():
            features, reconstruction = make(root / label, x, name)
        answer = {"x": x, "features": features, "reconstruction": reconstruction}
        save_file({key: one.contiguous() for key, one in answer.items()}, root / label / "answer.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
