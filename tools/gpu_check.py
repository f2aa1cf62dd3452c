"""Shows in minutes what works on a GPU, and how fast: kernels, equal bits, steps, the LM, and whole sweeps.

    PYTHONPATH=. python3 tools/gpu_check.py [--json FILE]
    PYTHONPATH=. python3 tools/gpu_check.py --device cpu --seconds 120      tests this tool: sizes are tiny

It needs this checkout, our dependencies except wandb, and no network. Parts that time nothing run first, side
by side; then the others, one by one, each with a share of the time. One that exceeds it is ended and says
where it was, one that fails is reported, and the next part runs. Exit code: 1 if any failed or was not done.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

_ABOUT_THE_PART = {"failed", "cut", "traceback", "seconds", "skipped", "at_s", "ready"}
PARTS_SCRIPT = Path(__file__).with_name("gpu_parts.py")
TOTAL_S = 360.0
MODULES = (
    *("torch", "transformers", "transformer_lens", "hydra", "omegaconf", "datasets", "lightning", "numpy"),
    *("pyarrow", "safetensors", "submitit", "filelock", "gguf", "jaxtyping", "matplotlib", "packaging"),
    *("psutil", "tqdm", "scipy", "xxhash"),
)


class Part(NamedTuple):
    """A part of the check."""

    name: str
    share: float
    """Share of the whole time; what a part leaves goes to those after it. Parts side by side have the sum."""
    what: str
    timed: bool = True
    """Whether it measures speed, so that nothing else may run."""


PARTS = (
    Part("kernels", 0.09, "every kernel against the reference, at odd and trained sizes", timed=False),
    Part("bits", 0.26, "weights of runs trained together, one by one and resumed: same bytes", timed=False),
    Part(
        "analyse",
        0.06,
        "task=analyse and task=match on the device and on the CPU: the same numbers",
        timed=False,
    ),
    Part("suite", 0.06, "the tests in tests/ops, where pytest and hypothesis are installed", timed=False),
    Part("steps", 0.15, "steps/s of a training step and of backend=reference, host waits, peak memory"),
    Part("lm", 0.06, "tokens/s of the language model"),
    Part("gpt2-small", 0.15, "a sweep at GPT-2 small's shape with random weights, from text to match"),
    Part("quickstart", 0.21, "experiment=quickstart with fewer tokens"),
    Part("dense", 0.12, "steps/s of a dense bf16 step under torch.compile, for comparison"),
)


def run_part(part: Part, device: str, limit_s: float, folder: Path) -> dict[str, Any]:
    """Run a part in a process; its state is ok, failed, cut (by the limit) or skipped."""
    out, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    command = [sys.executable, str(PARTS_SCRIPT), part.name, "--device", device, "--out", str(out)]
    path = os.pathsep.join(filter(None, [str(PARTS_SCRIPT.parents[1]), os.environ.get("PYTHONPATH")]))
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--seconds", str(limit_s)],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},  # what a cut part leaves goes too
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        in_time = _wait(process, limit_s)
    result: dict[str, Any] = {"part": part.name, "what": part.what, "seconds": time.monotonic() - began}
    found = list(_records(out))
    result["records"] = [record for record in found if not record.keys() <= _ABOUT_THE_PART]
    result["ready_s"] = next((record["at_s"] for record in found if "ready" in record), None)
    failed = next((record for record in found if "failed" in record), None)
    if failed:
        return {**result, "state": "failed", **failed}
    end = log.read_text(errors="replace")[-4000:]
    cut = next((record for record in found if "cut" in record), None)
    if cut or not in_time:
        why = f"not done after its {limit_s:.0f} s"
        return {**result, "state": "cut", "why": why, "traceback": cut["traceback"] if cut else end}
    if process.returncode:
        last = next(reversed(end.strip().splitlines()), "no output")
        failed = {"failed": f"exit code {process.returncode}: {last}", "traceback": end}
        return {**result, "state": "failed", **failed}
    skipped = next((record["skipped"] for record in found if "skipped" in record), None)
    return {**result, "state": "skipped", "why": skipped} if skipped else {**result, "state": "ok"}


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    """Wait for a process; after the limit end it, with all that it started, and return False."""
    try:
        process.wait(timeout=limit_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """What a part wrote; its last line may be incomplete if it was ended."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            return


def check(device: str, total_s: float, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Run the wanted parts within a time, and print each as it ends."""
    parts = [part for part in PARTS if part.name in wanted]
    together = [part for part in parts if not part.timed]
    steps = [together] if together else []
    steps += [[part] for part in parts if part.timed]
    whole = sum(part.share for part in parts)
    began, due, results = time.monotonic(), 0.0, []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for step in steps:
            share_s = total_s * sum(part.share for part in step) / whole
            due += share_s
            left = began + due - time.monotonic()
            for result in _run_side_by_side(
                step, device, left if left > 0.3 * share_s else None, Path(folder)
            ):
                results.append(result)
                show(result)
    return results


def _run_side_by_side(
    parts: Sequence[Part], device: str, limit_s: float | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """The parts' results as they end; all are skipped if no time is left."""
    if limit_s is None:
        for part in parts:
            result: dict[str, Any] = {"part": part.name, "what": part.what, "seconds": 0.0, "records": []}
            yield result | {"state": "skipped", "why": "the time was used up by earlier parts"}
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        for done in as_completed(pool.submit(run_part, part, device, limit_s, folder) for part in parts):
            yield done.result()


def show(result: dict[str, Any]) -> None:
    why = result.get("failed") or result.get("why") or ""
    ready = f", {result['ready_s']:.1f} until ready" if result.get("ready_s") else ""
    print(f"{result['part']:<11} {result['state']:<8} {result['seconds']:6.1f} s{ready}  {why}", flush=True)
    if result["state"] in ("failed", "cut"):
        print(indent(result.get("traceback", ""), "    | "), flush=True)
    for record in result["records"]:
        if line := describe(result["part"], record):
            print(f"    {line}", flush=True)


def describe(part: str, record: dict[str, Any]) -> str:
    """A record as a line; empty for those that only say that a check passed, or stand in the table."""
    if part == "lm":
        named = f"{record['model']}, layer {record['layer']}, {record['attention']}, {record['dtype']}"
        return f"{named}: {record['tokens_per_s']:,.0f} tokens/s"
    if "wall_s" in record:
        variances = ", ".join(f"{value:.3f}" for value in record["explained_variance"])
        return (
            f"{record['runs']} runs in {record['wall_s']:.0f} s from start to comparison: "
            f"{record['sae_tokens_per_s']:,.0f} SAE inputs/s, explained variance {variances}"
        )
    if "apart_by_device" in record:
        apart = ", ".join(f"{name} {value:.1e}" for name, value in record["apart"].items())
        return f"{record['apart_by_device']}: at most {apart} apart, {record['seconds']:.0f} s"
    return str(record.get("equal") or record.get("suite") or "")


def table(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each size and architecture: the records of `steps`, with the ratio to the dense step."""
    records = {result["part"]: result["records"] for result in results}
    dense = {
        (record["size"], record["architecture"]): record["dense_per_s"]
        for record in records.get("dense", [])
        if "dense_per_s" in record
    }
    rows = []
    for record in records.get("steps", []):
        theirs = dense.get((record["size"], record["architecture"]))
        rows.append({**record, "ratio_to_dense": theirs and record["steps_per_s"] / theirs})
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    layout = "{:12} {:10} {:>9} {:>12} {:>10} {:>10} {:>6} {:>11} {:>9}"
    head = ("size", "SAE", "steps/s", "tokens/s", "reference", "dense bf16", "busy", "waits/step", "peak GiB")
    for line in [head, *map(_cells, rows)] if rows else ():
        print(layout.format(*line))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def cell(value: float | None, how: str) -> str:
        return "-" if value is None else how.format(value)

    return (
        *(row["size"], row["architecture"], f"{row['steps_per_s']:,.1f}", f"{row['tokens_per_s']:,.0f}"),
        *(cell(row["ratio_to_reference"], "{:.2f}x"), cell(row["ratio_to_dense"], "{:.2f}x")),
        *(cell(row["busy"], "{:.0%}"), cell(row["host_waits"], "{:.1f}")),
        cell(row[f"{row['backend']}_peak_gib"], "{:.2f}"),
    )


def machine(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="time of all parts (default 360)")
    parser.add_argument("--parts", default=",".join(names), help=f"of {','.join(names)}; all by default")
    parser.add_argument("--json", type=Path, help="write the results there")
    keys = parser.parse_args()
    wanted = keys.parts.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"--parts {','.join(unknown)}: not one of {', '.join(names)}")
    document = document_of(keys.device, keys.seconds, wanted)
    if keys.json:
        keys.json.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(1 if document["state"] == "failed" else 0)


def document_of(device: str, total_s: float, wanted: Sequence[str]) -> dict[str, Any]:
    """The whole result, as it is written to JSON."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"gpu_check.py: not installed: {', '.join(missing)}")
        return {"state": "failed", "failed": f"not installed: {', '.join(missing)}", "parts": []}
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print(f"skipped: torch {torch.__version__} sees no CUDA here. With it, in {total_s:.0f} s:")
        for part in PARTS:
            if part.name in wanted:
                print(f"    {part.name:<11} {part.what}")
        return {"state": "skipped", "why": "no CUDA", "parts": []}
    about = machine(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    results = check(device, total_s, wanted)
    rows = table(results)
    print_table(rows)
    bad = {state: [one["part"] for one in results if one["state"] == state] for state in ("failed", "cut")}
    bad["skipped"] = [one["part"] for one in results if one["state"] == "skipped" and one["seconds"] == 0.0]
    lines = [
        f"{'not done' if state != 'failed' else state}: {', '.join(names)}"
        for state, names in bad.items()
        if names
    ]
    print("; ".join(lines) or "every part was done")
    return {"state": "failed" if lines else "ok", "machine": about, "table": rows, "parts": results}


if __name__ == "__main__":
    main()
