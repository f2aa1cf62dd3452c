"""The files of docker/: what can be tried without an image. `docker/build.sh` tries the image."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


def test_the_dockerfile_copies_what_its_context_has() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    shown = [line[1:] for line in ignored if line.startswith("!")]
    assert all((ROOT / name).exists() for name in shown)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} <= {".", *shown}


def test_compose_builds_the_stages_of_the_dockerfile() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in services.items():
        assert service["image"] == f"sae-sweep:{name}"
        assert service["build"]["target"] in stages
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        targets = [volume.split(":")[1] for volume in service["volumes"]]
        assert targets == ["/work/multirun", "/home/sae"]


@pytest.mark.parametrize("script", ["build.sh", "slurm.sh", "slim.sh"])
def test_scripts_are_valid_shell(script: str) -> None:
    shell = "sh" if script == "slim.sh" else "bash"
    subprocess.run([shell, "-n", DOCKER / script], check=True)


@pytest.mark.parametrize(("status", "requeued"), [(0, ""), (1, ""), (143, "requeue 7\n")])
def test_a_job_that_slurm_stops_is_requeued_with_its_command(
    tmp_path: Path, status: int, requeued: str
) -> None:
    commands = {
        "srun": f'echo "$@" > ran; echo "$SRUN_CPUS_PER_TASK" > cpus; exit {status}',
        "scontrol": 'echo "$@" > requeued',
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "requeued").touch()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    job = subprocess.run([DOCKER / "slurm.sh", "seed=42,49"], cwd=tmp_path, env=environment)
    assert job.returncode == status
    assert (tmp_path / "requeued").read_text() == requeued
    assert (tmp_path / "cpus").read_text() == "8\n"  # else the step has one CPU
    ran = (tmp_path / "ran").read_text()
    assert ran.startswith(f"apptainer run --nv --bind {tmp_path},{tmp_path}/cache --pwd {tmp_path}")
    assert ran.endswith(f"{tmp_path}/sae-sweep.sif seed=42,49\n")
