"""Time of matching two dictionaries, against one product of their rows in the same process.

    python bench/match.py [--features 12288] [--d-in 768] [--json FILE]

Half of the second dictionary are noisy copies of features of the first, the rest are random. Every time is
the median over `--repeats` rounds in which each kind of work is done in turn, except the assignment, which
runs once. The last line scales a pair to the study's 73 SAEs: the 51 of layer 8 for families, and all pairs.
"""

import argparse
import itertools
import json
import platform
import resource
import statistics
from pathlib import Path

import torch
from timing import positive, seconds

from sae_sweep.analysis.assignment import assign
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.neighbours import mutual, nearest

SIZES = {3072: 12, 6144: 12, 12288: 27}
"""SAEs of layer 8 in the study, by features."""
OTHER_LAYERS = 22
"""SAEs of other layers, all of 12,288 features."""


def pair(n: int, d_in: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = random_rows(n, d_in, 0), random_rows(n, d_in, 1)
    half = n // 2
    noise = torch.linspace(0, 1.5, half)[:, None] * random_rows(half, d_in, 2)
    b[:half] = torch.nn.functional.normalize(a[:half] + noise, dim=1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    return a.to(device), b[order].to(device)


def work_of_pairs(sizes: list[int]) -> int:
    return sum(x * y for x, y in itertools.combinations(sizes, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", type=positive, default=12288)
    parser.add_argument("--d-in", type=positive, default=768)
    parser.add_argument("--most", type=positive, default=4)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    keys = parser.parse_args()
    a, b = pair(keys.features, keys.d_in, keys.device)
    product = a.new_zeros(len(a), len(b))
    kinds = {
        "product": lambda: torch.mm(a, b.T, out=product),
        "top": lambda: nearest(a, b, keys.most),
        "mutual": lambda: mutual(nearest(a, b)),
    }
    rounds = [{name: seconds(work, a.device) for name, work in kinds.items()} for _ in range(keys.repeats)]
    times = {name: statistics.median(each[name] for each in rounds) for name in kinds}
    ratio = statistics.median(each["top"] / each["product"] for each in rounds)
    times["assignment"] = seconds(lambda: assign(a, b), a.device)
    layer = [size for size, count in SIZES.items() for _ in range(count)]
    per_product = times["mutual"] / (len(a) * len(b))
    families = per_product * work_of_pairs(layer)
    everything = per_product * work_of_pairs([*layer, *[12288] * OTHER_LAYERS])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {keys.device}"
    )
    print(f"two dictionaries of {len(a):,} x {keys.d_in}")
    print(f"one product               {times['product']:8.2f} s")
    print(f"top {keys.most}, both directions    {times['top']:8.2f} s   {ratio:.2f} products")
    print(f"mutual nearest            {times['mutual']:8.2f} s")
    print(f"assignment (exact)        {times['assignment']:8.2f} s")
    print(f"peak memory               {peak:8.2f} GiB")
    print(f"the study's SAEs at d_in {keys.d_in}: families of layer 8 {families / 60:.0f} min, ", end="")
    print(f"all pairs {everything / 60:.0f} min")
    if keys.json:
        named = {"ratio": ratio, "families": families, "all_pairs": everything, "peak_gib": peak}
        keys.json.write_text(json.dumps(times | named, indent=2) + "\n")


if __name__ == "__main__":
    main()
