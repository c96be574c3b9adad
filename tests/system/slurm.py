"""A real Slurm for tests: its controller at the head of the tests' hosts, its daemon on those that work.

Its files lie in a folder that is given, its ports within the hosts' own network. It ends with the block that started
it; should the tests be killed, it ends with the hosts.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.system.hosts import HEAD, Hosts

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")

# A job that is put back waits for cred_expire seconds, which are at least 5. Between a preemption's SIGTERM and SIGKILL
# lie GraceTime and then KillWait seconds. The partition devices has a node that is never there.
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={head}
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=30
KillWait=30
SlurmdParameters=config_overrides
CommunicationParameters=NoAddrCache
PropagateResourceLimits=NONE
MailProg=/bin/true
GresTypes=gpu
NodeName={nodes} CPUs=1 RealMemory=1000
NodeName=absent CPUs=8 RealMemory=1000 Gres=gpu:1 State=DOWN NodeAddr=127.0.0.1
PartitionName=normal Nodes={nodes} Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={nodes} MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=devices Nodes=absent
"""


def missing_programs() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Slurm:
    """A Slurm of some of the hosts, its partitions normal, urgent (which preempts) and devices (down, with a GPU)."""

    def __init__(self, hosts: Hosts, folder: Path, nodes: Sequence[str]) -> None:
        self.hosts, self.folder, self.nodes = hosts, folder, nodes
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self, *program: str, host: str = HEAD, **options: object) -> subprocess.Popen[str]:
        """A program that finds this Slurm, on a host."""
        return self.hosts.start(host, *program, **{"env": self.environment, **options})

    def run(self, *program: str, **options: object) -> str:
        """What a program at the head writes, when it has ended well."""
        done = self.hosts.run(HEAD, *program, **{"env": self.environment, **options})
        assert done.returncode == 0, f"{' '.join(program)}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What Slurm tells of a job."""
        told = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in told if "=" in word)


@contextmanager
def slurm_on(hosts: Hosts, nodes: Sequence[str], folder: Path) -> Iterator[Slurm]:
    """Slurm on some hosts, whose files lie in an empty folder, from when all its nodes are idle to the block's end."""
    (folder / "state").mkdir()
    for node in nodes:
        (folder / f"spool-{node}").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder, head=HEAD, nodes=",".join(nodes)))
    (folder / "gres.conf").write_text("NodeName=absent Name=gpu Count=1\n")
    slurm = Slurm(hosts, folder, nodes)
    daemons: list[subprocess.Popen[str]] = []

    def serve(host: str, *program: str) -> None:
        with (folder / f"{program[0]}-{host}.out").open("ab") as sink:
            daemons.append(slurm.start(*program, host=host, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink))

    try:
        own = [f"--{file}-file={folder}/munged.{file}" for file in ("pid", "log", "seed")]
        serve(HEAD, "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock", *own)
        _until(lambda: (folder / "munge.sock").exists(), "munged")
        serve(HEAD, "slurmctld", "-D")
        for node in nodes:
            serve(node, "slurmd", "-D", "-N", node)
        _until(lambda: _idle(slurm) == len(nodes), "slurmd")
        yield slurm
        slurm.run("scancel", "--user=root")
        _until(lambda: not slurm.run("squeue", "--noheader"), "the end of all jobs")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)


def _idle(slurm: Slurm) -> int:
    done = slurm.hosts.run(
        HEAD, "sinfo", "--noheader", "--Node", "--partition=normal", "--format=%T", env=slurm.environment
    )
    return done.stdout.split().count("idle")


def _until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
