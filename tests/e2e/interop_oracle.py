"""Runs another tool on what this package wrote; started with an interpreter that has it, not by pytest.

    python interop_oracle.py saelens REPOSITORY FOLDER OUT
    python interop_oracle.py saebench SAE TEXT OUT
    python interop_oracle.py saeprobes SAE DATASET OUT
    python interop_oracle.py delphi LATENTS OUT

OUT is a JSON file, or the safetensors file of SAELens's weights.
"""

import json
import sys
from pathlib import Path

MODEL = "gpt2"
"""Name of the bundled model on the stand-in of the hub; TransformerLens 3 knows models by their names."""


def saelens(repository: str, folder: str, out: str) -> None:
    """The weights that SAELens loads from the hub, under the names of its class."""
    from sae_lens import SAE
    from safetensors.torch import save_file

    sae = SAE.from_pretrained(repository, folder)
    save_file({name: value.contiguous() for name, value in sae.state_dict().items()}, out)


def saebench(folder: str, text: str, out: str) -> None:
    """SAEBench's core evaluation over all of TEXT, a folder here with 64 sequences of 128 token ids."""
    from sae_bench.evals.core.main import multiple_evals
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    sae.cfg.metadata.model_name = MODEL
    results = multiple_evals(
        [("mine", sae)],
        n_eval_reconstruction_batches=8,
        n_eval_sparsity_variance_batches=8,
        eval_batch_size_prompts=8,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=text,
        output_folder=f"{out}.results",
        device="cpu",
    )
    Path(out).write_text(json.dumps([result["metrics"] for result in results]))


def saeprobes(folder: str, dataset: str, out: str) -> None:
    """The probes of sae-probes on one of its datasets."""
    from sae_lens import SAE
    from sae_probes import run_sae_evals

    sae = SAE.load_from_disk(folder)
    run_sae_evals(
        sae,
        model_name=MODEL,
        hook_name=sae.cfg.metadata.hook_name,
        reg_type="l1",
        setting="normal",
        ks=[1, 16],
        results_path=f"{out}.results",
        model_cache_path=f"{out}.cache",
        datasets=[dataset],
        device="cpu",
    )
    (result,) = Path(f"{out}.results").rglob("*.json")
    Path(out).write_text(result.read_text())


def delphi(latents: str, out: str) -> None:
    """Every latent that Delphi can explain: its frequency, and its strongest example."""
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents.loader import LatentDataset

    sampler = SamplerConfig(n_examples_train=5, n_examples_test=5, n_quantiles=5)
    constructor = ConstructorConfig(min_examples=10, n_non_activating=5)
    records = LatentDataset(latents, sampler, constructor)
    found = {
        record.latent.latent_index: [
            record.per_token_frequency,
            record.max_activation,
            records.tokenizer.decode(record.examples[0].tokens),
        ]
        for record in records
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    {"saelens": saelens, "saebench": saebench, "saeprobes": saeprobes, "delphi": delphi}[sys.argv[1]](
        *sys.argv[2:]
    )
