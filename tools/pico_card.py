"""Write MODEL_CARD.md and its figure from the measurements of a training."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pico_data
import pico_eval

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
CURVE_ROWS = 12

CARD = """\
# gpt2-pico

The language model bundled with sae_sweep: GPT-2's architecture (learned positions, pre-LayerNorm,
tanh-GELU, tied embedding) with 12 layers, 4 heads, `d_model` 128, a context of 256 and a byte-level BPE
vocabulary of 4,096, of which `<|endoftext|>` (id 0) opens every sequence and separates documents.
{parameters:,} parameters, {megabytes:.1f} MB on disk in fp16. It is for trying the whole pipeline
on a laptop without a network: it writes plausible Python and plausible documentation, and knows nothing.

## Training

    {command}

Seed {seed}; {steps:,} steps of {batch} sequences, {tokens:,} tokens including the opening ones, in
{minutes:.0f} minutes on two shared CPU cores, fp32. Muon (learning rate {muon_lr}, weight decay 0.1) for the
matrices of the blocks, AdamW ({adam_lr}) for embeddings, norms and biases; warm-up over 2 % of the steps,
linear decay to 0 over the last three quarters; no dropout, gradients clipped to norm 1. The corpora are those
of `sae_sweep.text.embedded`, train side only, read from {libraries} on Python {python}.

| corpus | fingerprint | documents | tokens | share of the sequences | epochs |
| --- | --- | ---: | ---: | ---: | ---: |
{data}

The corpora differ with the versions of the libraries that they are read from; a path is on the same side of
the split in all versions.

![Loss over tokens](loss.png)

Training loss (mean over the 20 steps before) and held-out loss (24 sequences per corpus), nats per token:

| tokens | training | {corpora} |
| ---: | ---: | {rules} |
{curve}

## Held-out text

Files are held out by the hash of their path (about 5 %); none of their paragraphs of 80 characters or more is
in the training side of any corpus. All columns score the same tokens once, without the opening ones. The
n-grams are fitted on exactly the text above, counted once rather than per epoch: a unigram with add-one
smoothing; an interpolated modified Kneser-Ney trigram over all four corpora, and one over the corpus's own
text. They read the held-out text uninterrupted, while the model starts over in every sequence of 256;
*strided* scores the last 128 tokens of overlapping windows instead. The small training text weakens the
trigram as well as the model. Cross-entropy in nats per token:

| corpus | tokens | unigram | trigram | trigram, own text | model | model, strided | margin |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{scores}

*margin* is the better trigram minus the model (not strided). In bits per byte of text, the model has {bits}.

## Samples

80 tokens after the prompt, at temperature 0.7 from the 50 likeliest tokens:

{samples}
"""


def write(work: Path, folder: Path) -> None:
    """Evaluate the model in `folder`, and write its card and figure there."""
    scores = pico_eval.write_evaluation(work, folder)
    data = json.loads((work / "data.json").read_text())
    curve = [json.loads(line) for line in (work / "loss.jsonl").read_text().splitlines()]
    draw(curve, folder / "loss.png")
    settings = json.loads((work / "settings.json").read_text())
    text = CARD.format(
        **training_facts(settings, curve),
        **folder_facts(folder),
        data=data_rows(data, curve[-1]["tokens"] // pico_data.SEQUENCE),
        corpora=" | ".join(data),
        rules=" | ".join("---:" for _ in data),
        curve=curve_rows(curve),
        scores="\n".join(score_row(name, score) for name, score in scores.items()),
        bits=", ".join(
            f"{bits_per_byte(score['model'], data[name]):.2f} ({name})" for name, score in scores.items()
        ),
        samples="\n\n".join(fenced(text) for text in pico_eval.samples(folder).values()),
    )
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def training_facts(settings: dict[str, str], curve: list[dict]) -> dict[str, object]:
    """Return the settings and figures of the training."""
    names = ("tokens", "batch", "muon_lr", "adam_lr", "seed")
    options = " ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in names)
    last = curve[-1]
    return {
        "command": f"python tools/train_pico.py all --work runs/pico {options}",
        "steps": last["step"],
        "tokens": last["tokens"],
        "minutes": last["seconds"] / 60,
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "python": platform.python_version(),
        **{name: settings[name] for name in names if name != "tokens"},
    }


def folder_facts(folder: Path) -> dict[str, float]:
    """Return the number of parameters and the size on disk."""
    weights = (folder / "model.safetensors").stat().st_size
    total = sum(file.stat().st_size for file in folder.iterdir() if file.name != "MODEL_CARD.md")
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little") + 8
    return {"parameters": (weights - header) // 2, "megabytes": total / 1e6}


def data_rows(data: dict[str, dict], sequences: int) -> str:
    """Return the rows of the table of training text."""
    rows = []
    for name, facts in data.items():
        share = pico_data.SHARES[name]
        epochs = sequences * share / (facts["train_tokens"] // (pico_data.SEQUENCE - 1))
        rows.append(
            f"| {name} | `{facts['fingerprint']}` | {facts['train_documents']:,} | {facts['train_tokens']:,} "
            f"| {share:.0%} | {epochs:.1f} |"
        )
    return "\n".join(rows)


def curve_rows(curve: list[dict]) -> str:
    """Return the rows of the loss table: those with held-out losses, thinned to about `CURVE_ROWS`."""
    watched = [line for line in curve if "held_out" in line]
    thinned = watched[:: max(1, len(watched) // CURVE_ROWS)]
    if thinned[-1] is not watched[-1]:
        thinned.append(watched[-1])
    return "\n".join(
        f"| {line['tokens']:,} | {line['loss']:.3f} | "
        + " | ".join(f"{v:.3f}" for v in line["held_out"].values())
        + " |"
        for line in thinned
    )


def score_row(name: str, score: dict[str, float]) -> str:
    """Return a corpus's row of the table of held-out losses."""
    margin = min(score["trigram"], score["own_trigram"]) - score["model"]
    columns = ("unigram", "trigram", "own_trigram", "model", "model_strided")
    values = " | ".join(f"{score[column]:.3f}" for column in columns)
    return f"| {name} | {score['tokens']:,} | {values} | {margin:.3f} |"


def bits_per_byte(nats: float, facts: dict[str, int]) -> float:
    """Convert nats per token of the held-out text into bits per byte."""
    return nats / math.log(2) * facts["held_out_tokens"] / facts["held_out_bytes"]


def fenced(text: str) -> str:
    """Return a sample as an indented block."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def draw(curve: list[dict], path: Path) -> None:
    """Draw the training and held-out losses over tokens."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(
        [line["tokens"] / 1e6 for line in curve], [line["loss"] for line in curve], "0.6", label="training"
    )
    watched = [line for line in curve if "held_out" in line]
    for name in watched[0]["held_out"]:
        axes.plot(
            [w["tokens"] / 1e6 for w in watched], [w["held_out"][name] for w in watched], ".-", label=name
        )
    axes.set(xlabel="million tokens", ylabel="nats per token", ylim=(2, 6))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)
