"""task=generate, and commands whose text is sampled first."""

import json
import signal
from pathlib import Path

import pytest
import torch

from sae_sweep.activations import load_language_model, sampling
from sae_sweep.analysis.divergence import PSEUDOCOUNT
from sae_sweep.config import ModelConfig
from sae_sweep.tasks.divergences import described
from tests.activations.conftest import save_gpt2
from tests.conftest import Cli
from tests.disks import fill_up

SMALL = (
    *("dataset.tokens=3000", "dataset.block=32", "dataset.longest=40", "dataset.held_out_every=4"),
    *("layer=1", "packing.seq_len=16", "batch=64", "tokens=512", "activations.buffer_tokens=512"),
    *("evaluation.tokens=256", "tracking=none", "k=4", "dictionary=2", "matching.nulls=[]"),
)


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """A command on a tiny model whose context holds what it samples."""
    model = save_gpt2(tmp_path / "lm")
    return (f"model.path={model}", "model.name=tiny", f"paths.cache={tmp_path / 'cache'}", *SMALL)


def manifest(folder: Path) -> dict[str, object]:
    (path,) = folder.glob("cache/sampled/*/manifest-*.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_generate_samples_the_text_and_shows_how_far_others_are(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(4):
        (tmp_path / "text" / f"{number}.txt").write_text(f"The fox sleeps on {number}. " * 20)
    sampled = "{dataset: [faithful], dataset.tokens: [3000], dataset.block: [32], dataset.longest: [40]}"
    command = (
        *("task=generate", f"grids=[{sampled}, {{dataset: [files], dataset.path: [text]}}]"),
        *(word for word in words if not word.startswith("dataset.")),
    )
    result = cli(*command)
    assert result.code == 0, result.err
    rows = {line.split()[0]: line.split() for line in result.out.splitlines() if line.strip()}
    own, other = (list(map(float, rows[name][3:])) for name in ("faithful", "files"))
    first = dict(zip(rows["text"], rows["files"], strict=False))
    lm = load_language_model(ModelConfig(str(tmp_path / "lm"), dtype="float32"), torch.device("cpu"))
    exact = lm.next_logits(torch.tensor([[lm.tokenizer.bos_id]]))[0][0, : lm.tokenizer.size].softmax(0)
    counts = torch.full_like(exact, PSEUDOCOUNT)
    counts[lm.tokenizer.encode_batch(["The"])[0][0]] += int(first["documents"])
    for key, (p, q) in {"KL(lm|text)": (exact, counts), "KL(text|lm)": (counts, exact)}.items():
        p, q = p / p.sum(), q / q.sum()
        assert float(first[key]) == pytest.approx((p * (p / q).log()).sum().item(), abs=2e-3)
    assert own[-1] == 0
    assert other[-1] > 0.1
    assert own[3] < other[3]  # Jensen-Shannon of the first token: all of the files begin alike
    assert f"{manifest(tmp_path)['tokens']:,} tokens, sampled from BOS alone at " in " ".join(
        result.out.split()
    )
    (found,) = json.loads(cli(*command, "format=json").out)["sampled"]
    assert found["tokens"] == manifest(tmp_path)["tokens"]
    entries = {one["text"]: one for one in found["texts"]}
    assert set(entries) == {None, "faithful", "files"}
    assert [f"{entries['files'][name]:.3f}" for name in ("forward", "jensen_shannon")] == [
        rows["files"][3],
        rows["files"][6],
    ]
    narrow = described(found, 80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert "unigram JS" in "".join(narrow)


def test_a_run_samples_its_text_first_and_later_commands_read_it(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    refused = cli("task=plan", "dataset=faithful", "plan.tflops=1", *words)
    assert refused.code != 0
    assert "has not sampled its text yet" in refused.err
    assert "type the same command with task=generate first" in refused.err
    first = cli("dataset=faithful", "sweep=one", *words)
    assert first.code == 0, first.err
    before = manifest(tmp_path)
    (run,) = json.loads(Path("multirun/one/plan.json").read_text())["runs"]
    assert run["name"].startswith("tiny_L1_faithful_topk_x2_k4_s49")
    again = cli("task=generate", "dataset=faithful", "sweep=two", "seed=7", *words)
    assert again.code == 0, again.err
    assert manifest(tmp_path) == before
    assert cli("task=plan", "dataset=faithful", "plan.tflops=1", *words).code == 0


@pytest.fixture
def own_texts(tmp_path: Path) -> str:
    """Choices of `dataset`: text of two seeds that a model samples, and a domain of one."""
    folder = tmp_path / "conf" / "dataset"
    folder.mkdir(parents=True)
    sizes = "".join(f"{word.removeprefix('dataset.').replace('=', ': ')}\n" for word in SMALL[:4])
    for seed in (1, 2):
        (folder / f"own{seed}.yaml").write_text(
            f"defaults:\n  - faithful\nname: own{seed}\nseed: {seed}\n{sizes}"
        )
    (folder / "about.yaml").write_text(
        "defaults:\n  - domain\nname: about\nof: own1\nkeywords: [dog, fo, br, do]\ndocuments: 9999\n"
    )
    return f"--config-dir={folder.parent}"


def test_texts_that_others_are_made_of_are_sampled(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], own_texts: str
) -> None:
    """A mixture of a domain and of another seed's text."""
    mixed = (own_texts, "dataset=mix", "dataset.weights={about:0.5,own2:0.5}")
    words = (*mixed, *(word for word in words if not word.startswith("dataset.")))
    assert "type the same command with task=generate first" in cli("task=plan", *words).err
    assert "run the same command with task=generate in a job" in cli("launcher=slurm", *words).err
    result = cli("task=generate", *words)
    assert result.code == 0, result.err
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("cache/sampled/*/manifest-*.json")]
    assert {one["provenance"]["seed"] for one in manifests} == {1, 2}
    rows = {line.split()[0] for line in result.out.splitlines() if line.strip()}
    assert {"about", "own1", "own2"} < rows


def test_generate_without_a_text_to_sample_is_refused(cli: Cli, words: tuple[str, ...]) -> None:
    rest = [word for word in words if not word.startswith("dataset.")]
    result = cli("task=generate", "dataset=stdlib_docs", *rest)
    assert result.code == 2
    assert "task=generate samples the text of dataset=faithful, which this command lacks" in result.err


def test_a_model_that_reads_the_text_of_another_is_named(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    other = f"dataset.path={tmp_path / 'lm'}"
    result = cli("launcher=slurm", "model=gpt2-pico", "dataset=faithful", other, *words[2:])
    assert f"gpt2-pico reads text that {tmp_path / 'lm'} sampled, not its own" in result.err


def test_a_stop_says_that_the_same_command_resumes(
    cli: Cli, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "sample", lambda *_: signal.raise_signal(signal.SIGINT))
    result = cli("task=generate", "dataset=faithful", *words)
    assert result.code == 128 + signal.SIGINT
    assert result.err.endswith("stopped by SIGINT; launch the same command again to resume\n")


def test_a_full_disk_is_one_line_and_sampling_goes_on_where_it_stopped(
    cli: Cli, small_disk: Path, words: tuple[str, ...]
) -> None:
    words = ("task=generate", "dataset=faithful", *words, f"paths.cache={small_disk}")
    fill_up(small_disk, left=2**14)
    result = cli(*words)
    assert result.code == 1
    assert "no disk space left to write" in result.err.splitlines()[-1]
    assert not list(small_disk.glob("sampled/*/manifest.json"))
    done = [path.read_bytes() for path in sorted(small_disk.glob("sampled/*/block-*"))]
    assert done
    (small_disk / "filler").unlink()
    assert cli(*words).code == 0
    assert [path.read_bytes() for path in sorted(small_disk.glob("sampled/*/block-*"))][: len(done)] == done


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("dataset.tokens=0", "dataset.tokens=0: must be at least 1"),
        ("dataset.tokens=1e30", "dataset.tokens=1e30: must be a whole number, written in digits"),
        ("dataset.block=2147483647", "memory ran out ("),
        (
            "dataset.path=./nowhere",
            "dataset=faithful, sampled by ./nowhere: model.path=./nowhere: no such file",
        ),
    ],
)
def test_a_text_that_cannot_be_sampled_is_one_line(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], word: str, problem: str
) -> None:
    rest = [other for other in words if not other.startswith(word.partition("=")[0])]
    result = cli("task=generate", "dataset=faithful", *rest, word)
    assert result.code in (1, 2)
    assert problem in result.err.splitlines()[-1]
    assert not list(tmp_path.glob("cache/sampled/*/manifest.json"))


def test_text_is_not_sampled_where_jobs_are_submitted(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = cli("dataset=faithful", "launcher=slurm", "paths.output=out", *words)
    assert result.code != 0
    assert "run the same command with task=generate in a job of its own first" in result.err
    assert not list(tmp_path.glob("cache/sampled/*"))
    assert not Path("out").exists()
