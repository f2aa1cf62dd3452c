"""Starts a one-node SLURM on this machine, with all of its files in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

CONF = """
ClusterName=sae-sweep-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits until its credential has expired, by default two minutes
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,batch_sched_delay=1,sched_interval=1
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=10
# more cores than the machine may have, so that jobs run in parallel
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")


def why_not() -> str | None:
    """Reason why SLURM cannot be started here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here: install slurm-wlm and munge"
    return None if os.geteuid() == 0 else "only root can start a SLURM"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Slurm:
    """Run munged, slurmctld and slurmd during the `with` block."""

    def __init__(self, root: Path) -> None:
        self.conf = root / "slurm.conf"
        self._root = root
        self._stack = ExitStack()

    def __enter__(self) -> "Slurm":
        root = self._root
        for folder in ("state", "spool"):
            (root / folder).mkdir()
        key = root / "munge.key"
        key.write_bytes(os.urandom(256))
        key.chmod(0o600)
        ports = _free_ports()
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(CONF.format(host=host, root=root, ctld_port=ports[0], slurmd_port=ports[1]))
        self._start(
            "munged",
            *("--foreground", "--force", f"--socket={root}/munge.socket", f"--key-file={key}"),
            *(f"--pid-file={root}/munged.pid", f"--log-file={root}/munged.log"),
            f"--seed-file={root}/munged.seed",
        )
        wait_for((root / "munge.socket").exists, "munged's socket", self.logs)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        wait_for(lambda: "idle" in self("sinfo", "-h", "-o", "%T"), "an idle node", self.logs)
        self._stack.callback(self._cancel_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, *command: str) -> str:
        """Standard output of a SLURM command."""
        return subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, check=False
        ).stdout

    def logs(self) -> str:
        """Last log lines of the daemons."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._root.glob("*.out")))

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.conf)}

    def _start(self, *command: str) -> None:
        with (self._root / f"{command[0]}.out").open("wb") as output:
            process = subprocess.Popen(command, env=self._environment(), stdout=output, stderr=output)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)

    def _cancel_all(self) -> None:
        self("scancel", "--user=root", "--signal=KILL")
        self("scancel", "--user=root")
        wait_for(lambda: not self("squeue", "-h").strip(), "an empty queue", self.logs)


def wait_for(
    fact: Callable[[], object], what: str, logs: Callable[[], str] = str, seconds: float = 120
) -> None:
    """Wait until `fact` holds; fail with the output of `logs` on a timeout."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}\n{logs()}"
        time.sleep(0.1)


def _free_ports() -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
