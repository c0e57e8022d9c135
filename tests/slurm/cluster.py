"""A real Slurm cluster for tests: munged, slurmctld and a few slurmd, in a folder of its own, gone when the test ends.

Two modes. *Plain*: every slurmd on the loopback address with its own port; needs no privileges. *netns*: head and
nodes each in their own network, UTS, mount and PID namespace, joined by a bridge that lives inside the head's
namespace; host names come from a private /etc/hosts bound over the real one there. Killing a node's first process is
then a true node crash. The machine's own network, /etc and /run are never touched, so any number of clusters can run
side by side.

No leftovers: every daemon is a child in the foreground that dies with this process (PR_SET_PDEATHSIG), and a namespace
dies with its first process. In plain mode job processes are found by the SLURM_CONF in their environment, which is this
cluster's alone. A janitor, a process that waits for this one to end, in whatever way, kills those and removes the
folder where a killed test did not.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm.commands import Ran
from slurm.environment import expand

HOW_TO_GET = "apt-get install --no-install-recommends slurm-wlm munge"
NEEDED = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NET = "10.79.0"
HEAD_IP = f"{NET}.254"
PMIX = "/usr/lib/*/pmix2/lib/libpmix.so"  # where Debian's plugin looks for it
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Options:
    """What differs from cluster to cluster; every time is in seconds."""

    nodes: int = 3
    cpus: int = 2
    netns: bool = False
    grace: int = 0
    kill_wait: int = 2
    slurmd_timeout: int = 10
    # munge credentials live this long, and a requeued job may not start again before (less than 5 counts as 120)
    cred_expire: int = 5
    send_user_signal: bool = True
    task_plugin: str = "task/none"


def why_not(netns: bool) -> str | None:
    """The reason why no such cluster can be started here, with what to do about it; None if it can."""
    missing = [tool for tool in NEEDED if shutil.which(tool, path=search_path()) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} not found): {HOW_TO_GET}"
    if netns:
        if os.geteuid() != 0:
            return "network namespaces for a multi-node Slurm need root"
        for tool in ("unshare", "nsenter", "ip", "setpriv"):
            if shutil.which(tool, path=search_path()) is None:
                return f"{tool} not found: apt-get install util-linux iproute2"
        probe = [
            "unshare",
            "--net",
            "--uts",
            "--mount",
            "--pid",
            "--fork",
            "ip",
            "link",
            "add",
            "probe0",
            "type",
            "bridge",
        ]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=20)
        if done.returncode:
            return f"network namespaces do not work here: {done.stderr.strip()}"
    return None


def why_no_pmix() -> str | None:
    """The reason why `srun --mpi=pmix` cannot work on a netns cluster here; None if it can."""
    if glob.glob(PMIX):
        return None
    return f"Slurm's pmix plugin finds no library ({PMIX}): apt-get install --no-install-recommends libpmix-dev"


def search_path() -> str:
    """PATH with the system folders added: slurmctld and munged live in sbin, which users often lack."""
    return os.environ.get("PATH", "") + ":" + SYSTEM_PATH


def until(what: Callable[[], bool], timeout: float, message: str | Callable[[], str]) -> None:
    """Wait until `what()` is true; raise TimeoutError with `message` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(message if isinstance(message, str) else message())
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    """Ports on the loopback address that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclass
class Cluster:
    """A running cluster. Use `with running(Options(...)) as cluster`."""

    folder: Path
    options: Options
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def nodes(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.options.nodes + 1)]

    @property
    def environ(self) -> dict[str, str]:
        """The environment clients run in: nothing of an outer Slurm, MPI or munge."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI", "OMPI_", "PMIX_"))
        }
        if self.options.netns:
            # each node has its own /dev/shm; MPI names its files by host and process id, which clusters share
            kept["TMPDIR"] = "/dev/shm"
        return {**kept, "SLURM_CONF": str(self.conf), "PATH": search_path()}

    # --- use ----------------------------------------------------------------------------------------------------------

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` as it must be started to run on the cluster's head."""
        if not self.options.netns:
            return list(argv)
        # not --pid: the caller can then signal what it started
        return [
            "nsenter",
            "-t",
            str(self.daemons["head"].pid),
            "--net",
            "--uts",
            "--mount",
            f"--wd={os.getcwd()}",
            *argv,
        ]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 30,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client command on the head."""
        done = subprocess.run(
            self.command(argv),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self.environ, **(env or {})},
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)} gave {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def runner(self, argv: Sequence[str], stdin: str | None = None) -> Ran:
        """What the code under test is given to run Slurm's commands with."""
        done = self.run(argv, input=stdin)
        return Ran(done.returncode, done.stdout, done.stderr)

    def sbatch(self, script: str, *options: str) -> int:
        """Submit a script (its text); returns the job id."""
        done = self.run(["sbatch", "--parsable", f"--chdir={self.folder}", *options], input=script, check=True)
        return int(done.stdout.strip().split(";")[0])

    def job(self, jobid: int) -> dict[str, str]:
        """All `scontrol show job` says; empty if the job is no longer known."""
        line = self.run(["scontrol", "show", "job", "-o", str(jobid)]).stdout.strip()
        return dict(re.findall(r"(\w+(?:/\w+)?(?::\w+)?)=(\S*)", line))

    def nodes_of(self, jobid: int) -> list[str]:
        return expand(self.job(jobid)["NodeList"])

    def state(self, jobid: int) -> str:
        return self.job(jobid).get("JobState", "")

    def wait(self, jobid: int, *states: str, timeout: float = 60) -> dict[str, str]:
        """Wait until the job is in one of the states; returns its description then."""
        until(lambda: self.state(jobid) in states, timeout, lambda: f"job {jobid} not {states}: {self.story(jobid)}")
        return self.job(jobid)

    def wait_text(self, path: Path, text: str, timeout: float = 60) -> str:
        """Wait until a file holds `text`; returns all of the file."""
        until(
            lambda: path.exists() and text in path.read_text(),
            timeout,
            lambda: f"no {text!r} in {path}: {self.story()}",
        )
        return path.read_text()

    def set_partition(self, name: str, **values: str | int) -> None:
        """Change a partition while running, such as GraceTime=5."""
        self.run(["scontrol", "update", f"PartitionName={name}", *(f"{k}={v}" for k, v in values.items())], check=True)

    def cancel_all(self, wait: bool = True) -> None:
        """End every job, and wait until the nodes are free again."""
        self.run(["scancel", f"--user={user()}"])
        if not wait:
            return
        free = ["sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N"]
        until(
            lambda: (
                len(self.run(free).stdout.split()) == len(self.alive_nodes()) and not self.run(["squeue", "-h"]).stdout
            ),
            40,
            lambda: f"nodes do not become idle: {self.story()}",
        )

    def alive_nodes(self) -> list[str]:
        return [name for name in self.nodes if name in self.daemons]

    def story(self, jobid: int | None = None) -> str:
        """What there is to know when a wait was in vain."""
        parts = [self.run(["sinfo", "-N", "-l"]).stdout, self.run(["squeue", "-l"]).stdout]
        if jobid is not None:
            parts.append(self.run(["scontrol", "show", "job", str(jobid)]).stdout)
        for log in sorted(self.folder.glob("*.log")):
            parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)

    # --- start and stop -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.options.netns:
            self._start_head()
        self._write_conf()
        self._daemon(
            "munged",
            [
                *("munged", "--foreground", "--force"),
                *(f"--key-file={self.folder}/munge.key", f"--socket={self.folder}/munge.sock"),
                *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
                f"--seed-file={self.folder}/munged.seed",
            ],
        )
        credential = ["munge", "-S", f"{self.folder}/munge.sock", "-n"]
        until(lambda: self.run(credential).returncode == 0, 10, lambda: f"munged does not answer: {self.story()}")
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        until(
            lambda: " UP" in self.run(["scontrol", "ping"]).stdout, 15, lambda: f"slurmctld is not up: {self.story()}"
        )
        for name in self.nodes:
            self.start_node(name, wait=False)
        idle = ["sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N"]
        until(
            lambda: len(self.run(idle).stdout.split()) == self.options.nodes,
            30,
            lambda: f"nodes not idle: {self.story()}",
        )

    def stop(self) -> None:
        """End everything that was started; safe to call twice and after half a start."""
        if "slurmctld" in self.daemons:
            with contextlib.suppress(Exception):
                self.run(["scancel", f"--user={user()}"], timeout=5)
        for name in [*self.nodes, "slurmctld", "munged", "head"]:
            self._end(name)
        end_jobs(self.conf)

    def start_node(self, name: str, wait: bool = True) -> None:
        """Start a node's slurmd, also again after `kill_node`."""
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        slurmd = f"slurmd -D -N {name} -f {self.conf}"
        if self.options.netns:
            ready = self.folder / f"net-{name}"
            ready.unlink(missing_ok=True)
            setup = f"hostname {name}; mount --bind {self.folder}/hosts /etc/hosts; mount -t tmpfs tmpfs /dev/shm; "
            setup += f"while [ ! -e {ready} ]; do sleep 0.02; done; "
            self._daemon(name, [*NAMESPACES, "sh", "-c", f"{setup} exec {slurmd}"], on_head=False)
            self._join_network(name, f"{NET}.{self.nodes.index(name) + 1}")
            ready.touch()
        else:
            self._daemon(name, slurmd.split())
        if wait:
            idle = ["sinfo", "-h", "-N", "-n", name, "-t", "idle", "-o", "%N"]
            until(lambda: name in self.run(idle).stdout, 30, lambda: f"{name} is not idle: {self.story()}")

    def kill_node(self, name: str) -> None:
        """In netns mode all processes and connections of the node vanish at once, as when the power fails."""
        self._end(name, signal.SIGKILL)

    def _start_head(self) -> None:
        hosts = ["127.0.0.1 localhost", f"{HEAD_IP} head", *(f"{NET}.{i + 1} {n}" for i, n in enumerate(self.nodes))]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        ready = self.folder / "net-head"
        # a shell as pid 1 that waits for its child also reaps orphans
        setup = f"hostname head; mount --bind {self.folder}/hosts /etc/hosts; touch {ready}; while :; do sleep 60; done"
        self._daemon("head", [*NAMESPACES, "sh", "-c", setup], on_head=False)
        until(ready.exists, 10, lambda: f"no namespaces: {(self.folder / 'head.log').read_text()}")
        for line in (
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {HEAD_IP}/24 dev br0",
            "link set br0 up",
        ):
            self.run(["ip", *line.split()], check=True)

    def _join_network(self, name: str, ip: str) -> None:
        pid = str(self.daemons[name].pid)
        mine = os.readlink("/proc/self/ns/net")
        # unshare itself is in the new network namespace (only the PID namespace begins with its child)
        until(lambda: os.readlink(f"/proc/{pid}/ns/net") != mine, 10, f"{name} got no network namespace")
        self.run(["ip", "link", "del", f"to-{name}"])
        for line in (
            f"link add to-{name} type veth peer name eth0 netns {pid}",
            f"link set to-{name} master br0 up",
        ):
            self.run(["ip", *line.split()], check=True)
        for line in (
            f"addr add {ip}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {HEAD_IP}",
        ):
            subprocess.run(
                ["nsenter", "-t", pid, "--net", "ip", *line.split()], check=True, timeout=10, capture_output=True
            )

    def _daemon(self, name: str, argv: list[str], on_head: bool = True) -> None:
        full = self.command(argv) if on_head else argv
        with open(self.folder / f"{name}.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *full] if shutil.which("setpriv") else full,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ,
                start_new_session=True,
            )

    def _end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        first = children(daemon.pid) if self.options.netns and (name == "head" or name in self.nodes) else []
        if first:
            # the first process of a PID namespace ignores SIGTERM and takes the namespace along; unshare then reaps it
            os.kill(first[0], signal.SIGKILL)
        else:
            daemon.send_signal(how)
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(5)

    def kill_job(self, jobid: int) -> int:
        """SIGKILL to every process of a job in plain mode, its script included; returns how many there were."""
        killed = 0
        for _ in range(5):  # some may be starting just now
            for pid in self.processes_of(jobid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.02)
        return killed

    def processes_of(self, jobid: int) -> list[int]:
        """Every process of a job in plain mode, its script included."""
        mark = f"\0SLURM_JOB_ID={jobid}\0".encode()
        found = []
        for pid in job_processes(self.conf):
            with contextlib.suppress(OSError):
                if mark in b"\0" + (Path("/proc") / str(pid) / "environ").read_bytes() + b"\0":
                    found.append(pid)
        return found

    def _write_conf(self) -> None:
        o = self.options
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "state").mkdir(exist_ok=True)
        shape = f"CPUs={o.cpus} Sockets=1 CoresPerSocket={o.cpus} ThreadsPerCore=1 RealMemory=4000"
        if o.netns:
            host, ports = f"head({HEAD_IP})", [6817]
            nodes = [
                f"NodeName={n} NodeHostname={n} NodeAddr={NET}.{i + 1} Port=6818 {shape}"
                for i, n in enumerate(self.nodes)
            ]
        else:
            name = socket.gethostname().split(".")[0]
            host, ports = f"{name}(127.0.0.1)", free_ports(1 + o.nodes)
            nodes = [
                f"NodeName={n} NodeHostname={name} NodeAddr=127.0.0.1 Port={p} {shape}"
                for n, p in zip(self.nodes, ports[1:], strict=True)
            ]
        if o.netns and why_no_pmix() is None:
            # its sockets are named by job and step, so nodes that share a folder for them, as in plain mode, collide
            (self.folder / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")
        signal_option = "SlurmctldParameters=preempt_send_user_signal" if o.send_user_signal else ""
        self.conf.write_text(
            f"""\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser={user()}
SlurmdUser={user()}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.sock,cred_expire={o.cred_expire}
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin={o.task_plugin}
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,bf_resolution=1,bf_max_job_test=200,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{signal_option}
JobRequeue=1
KillWait={o.kill_wait}
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout={o.slurmd_timeout}
JobCompType=jobcomp/filetxt
JobCompLoc={self.folder}/jobcomp.txt
"""
            + "\n".join(nodes)
            + f"""
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={o.grace} MaxTime=120
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=120
"""
        )


NAMESPACES = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def children(pid: int) -> list[int]:
    """Process ids of the direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def job_processes(conf: Path) -> list[int]:
    """Every process with this cluster's configuration in its environment: in plain mode daemons, clients and jobs."""
    found = []
    mark = f"SLURM_CONF={conf}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
    return found


def end_jobs(conf: Path) -> int:
    """Kill what is left of the cluster's jobs; returns how many processes that were."""
    left = job_processes(conf)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


_JANITOR = """\
import shutil, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from cluster import end_jobs
sys.stdin.read()  # until nobody holds the other end
folder = Path({folder!r})
while end_jobs(folder / "slurm.conf") or folder.exists():
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.02)
"""


def janitor(folder: Path) -> subprocess.Popen[bytes]:
    """Removes the cluster in `folder` as soon as this process has ended, or closed the janitor's standard input."""
    path = [str(Path(__file__).parent), *sys.path]
    code = _JANITOR.format(path=path, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)


def user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def running(options: Options) -> Iterator[Cluster]:
    """A cluster for the length of a `with` block, in a temporary folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-test-"))
    folder.chmod(0o755)
    cluster = Cluster(folder, options)
    after = janitor(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        after.communicate()
