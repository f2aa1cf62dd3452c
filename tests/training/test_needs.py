"""The estimate of memory beside measured peaks of a run with the bundled model."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest

MEASURE = """
import gc
from pathlib import Path
import numpy as np, torch
from sae_sweep.activations import load_language_model
from sae_sweep.analysis.evaluation import evaluate
from sae_sweep.analysis.losses import language_model_baselines
from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import ActivationsConfig, ModelConfig, ReLUConfig, RunConfig
from sae_sweep.saes import Learner, build_sae
from sae_sweep.store import RunFolder
from sae_sweep.training.checkpoint import Checkpoint, save_checkpoint
from sae_sweep.training.needs import needs

def resident(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

model = ModelConfig(path="bundled:gpt2-pico", dtype="float32")
lm = load_language_model(model, torch.device("cpu"))
activations = ActivationsConfig(lm_batch=128)
config = RunConfig(model=model, architecture=ReLUConfig(), dictionary=48, layer=6, activations=activations,
                   batch=2048, backend="reference")
[estimate] = needs([config], lm.sizes, on_cpu=True)

def peak(what, of, call):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    value = call()
    print(f"{what}: {resident('VmHWM') - before} of {of}")
    return value

d, d_sae = lm.d_model, 48 * lm.d_model
sae = build_sae(config.architecture, d, d_sae, seed=1, numerics="modern")
learner = Learner(sae, config, "cpu")
tokens = np.random.default_rng(0).integers(1, 4000, (16, 128), dtype=np.int32)
mask = tokens > 5
lm.residuals(torch.from_numpy(tokens[:1]), [6])
many = torch.from_numpy(np.tile(tokens, (8, 1)))
peak("pass", estimate.phases["a pass of the language model"], lambda: lm.residuals(many, [6]))
x = torch.randn(2048, d)
learner.step(x)
peak("step", estimate.phases["a training step"], lambda: learner.step(x))
peak("checkpoint", estimate.phases["a checkpoint"],
     lambda: save_checkpoint(RunFolder(Path("run")), "x", Checkpoint(learner.state(), None, 0, 0.0)))
of = estimate.phases["the evaluation"]
def evaluation():
    baselines = language_model_baselines(lm, tokens, 6, mask, lm.device)
    evaluate(sae.eval(), lm, tokens, 6, mask, baselines=baselines)
    match_to_own_start(sae.W_dec, config, "x", 0.7)
peak("evaluation", of, evaluation)
"""


@pytest.mark.slow(reason="peaks are those of a process of its own, which imports torch first")
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux resets the peak of a process"
)
def test_the_estimate_is_a_little_above_the_measured_peaks(tmp_path: Any) -> None:
    returns_memory = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        env=returns_memory,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(\w+): (\d+) of (\d+)$", done.stdout, re.MULTILINE)
    assert len(found) == 4, done.stderr
    for what, peak, estimate in found:
        assert int(peak) <= 1.05 * int(estimate), what
        assert int(peak) >= 0.4 * int(estimate), what
