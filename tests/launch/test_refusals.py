"""A refusal of SLURM names the keys of ours that would change it."""

import pytest

from sae_sweep.config import SlurmConfig
from sae_sweep.launch.refusals import remedy


@pytest.mark.parametrize(
    ("refusal", "keys"),
    [
        ("Memory specification can not be satisfied", ["mem_gb"]),
        (
            "Batch job submission failed: Requested node configuration is not available",
            ["mem_gb", "cpus", "gpus"],
        ),
        ("CPU count per node can not be satisfied", ["cpus"]),
        ("More processors requested than permitted", ["cpus"]),
        ("invalid partition specified: gpu2", ["partition"]),
        ("Invalid account or account/partition combination specified", ["partition", "account"]),
        ("Invalid qos specification", ["qos"]),
        ("Requested time limit is invalid (missing or exceeds some limit)", ["time_min"]),
        ("Invalid generic resource (gres) specification", ["gpus"]),
        ("Invalid feature specification", ["extra"]),
        ("unrecognized option '--foo'", ["extra"]),
        ("Job violates accounting/QOS policy (job submit limit)", ["time_min", "cpus", "mem_gb"]),
        ("Invalid job array specification", ["array_parallelism"]),
    ],
)
def test_keys_by_message(refusal: str, keys: list[str]) -> None:
    text = remedy(refusal, SlurmConfig())
    assert all(f"launcher.slurm.{key} (now " in text for key in keys), text


def test_values_are_said_and_the_clusters_defaults(tmp_path: object) -> None:
    text = remedy("Memory specification can not be satisfied", SlurmConfig(mem_gb=512))
    assert text == "what asks for it: launcher.slurm.mem_gb (now 512)"
    assert "(now the cluster's default)" in remedy("Memory specification", SlurmConfig())


def test_a_machine_without_slurm_and_an_unknown_message() -> None:
    assert "launcher=local" in remedy(
        'Could not detect "srun", are you indeed on a slurm cluster?', SlurmConfig()
    )
    assert remedy("Unable to contact slurm controller (connect failure)", SlurmConfig()) == ""
