"""A real Slurm on this machine: two nodes of 8 fake GPUs each, with a munged, a slurmctld and two slurmd of its own.

Started without systemd or cgroups, as root, in a folder of its own; nothing outside it is touched.
"""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("sbatch", "srun", "slurmctld", "slurmd", "munged")
NODES = ("n1", "n2")
GPUS = 8


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    path = os.environ["PATH"] + ":/usr/sbin"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        return f"no {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "it takes root to start a slurmd"


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    """The running cluster; `environment` is what its commands need."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = dict(os.environ) | {
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": os.environ["PATH"] + ":/usr/sbin",
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        self._configure()
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        paths = [f"--{name}={self.root}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "seed-file")]
        log = f"--log-file={self.root}/munge.log"
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", log, *paths)
        self._wait(lambda: (self.root / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self.wait_idle()

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def crash_node(self, node: str) -> None:
        """Kill -9 a node's slurmd and whatever runs on it, as when its power goes, and let the controller know."""
        self._daemons.pop(node).kill()
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "slurmstepd" and self._belongs(process, node):
                for victim in (process, *process.children(recursive=True)):
                    victim.kill()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=crash")

    def _belongs(self, stepd: psutil.Process, node: str) -> bool:
        place = f"{self.root}/spool/{node}/"
        return any(str(link.laddr).startswith(place) for link in stepd.net_connections(kind="unix"))

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        if "slurmctld" in self._daemons:
            subprocess.run(["scancel", "--user=root", "--full"], env=self.environment, timeout=30)
            self._wait(lambda: not self.run("squeue", "-h", "-t", "R,CG"), "the end of all jobs")
        for daemon in reversed(list(self._daemons.values())):
            daemon.terminate()
        for daemon in self._daemons.values():
            daemon.wait(timeout=30)

    def run(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def wait_idle(self) -> None:
        """Wait until no job is left and both nodes can work."""

        def idle() -> bool:
            states = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=self.environment, capture_output=True)
            return set(states.stdout.decode().split()) == {"idle"}

        self._wait(idle, "idle nodes")

    def _daemon(self, *command: str, name: str = "") -> None:
        log = open(self.root / f"{name or command[0]}.out", "ab")  # noqa: SIM115 (the daemon's)
        self._daemons[name or command[0]] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline, f"no {what}; logs in {self.root}"
            time.sleep(0.1)

    def _configure(self) -> None:
        for folder in ("state", "spool", "dev"):
            (self.root / folder).mkdir()
        for node in NODES:
            for number in range(GPUS):
                os.mknod(self.root / "dev" / f"{node}-{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=64000 "
            f"Gres=gpu:h800:{GPUS} Weight={weight}"
            for node, port, weight in zip(NODES, ports[1:], (2, 1), strict=True)  # jobs go to n2 first
        )
        gres = "\n".join(
            f"NodeName={node} Name=gpu Type=h800 File={self.root}/dev/{node}-[0-{GPUS - 1}]" for node in NODES
        )
        (self.root / "gres.conf").write_text(gres + "\n")
        (self.root / "slurm.conf").write_text(
            SLURM_CONF.format(root=self.root, host=host, controller_port=ports[0], nodes=nodes)
        )


SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=10
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
