"""What is wrong with this place, before it costs an allocation.

Every check is a small function that looks at one thing and returns findings; what it needs to know of MPI, of other
nodes or of the Python path is passed in as data. The cheap ones run at every start, all of them in `yoda doctor`.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.commands import Runner
from slurm.environment import launched_rank
from slurm.site import SlurmSite


class Level(enum.Enum):
    """How bad a finding is: fine, will cost something, will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What was found, where, and what to do about it (empty when all is well)."""

    level: Level
    what: str
    where: str
    todo: str = ""


def worst(findings: Sequence[Finding]) -> Level:
    """The worst level among findings; OK for none."""
    order = [Level.OK, Level.WARN, Level.FAIL]
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)


def _ok(what: str, where: str) -> Finding:
    return Finding(Level.OK, what, where)


# --- MPI and launcher -------------------------------------------------------------------------------------------------


def check_singletons(
    environ: Mapping[str, str], mpi_size: int, offered: Sequence[str] = (), library: str = ""
) -> Finding:
    """A launcher that started N processes which each believe to be alone: PMI did not match.

    `offered` is what `srun --mpi=list` names (see `mpi_types`), `library` the version text of the MPI that was loaded;
    with both, the line to try is exact.
    """
    launched = launched_rank(environ)
    if launched is None or launched[1] == mpi_size:
        return _ok(f"the launcher and MPI agree: {mpi_size} ranks", "MPI")
    if mpi_size > 1:
        return _ok(f"{mpi_size} ranks", "MPI")
    what = f"{launched[1]} processes were started, but each is an MPI job of size 1"
    return Finding(Level.FAIL, what, "launcher", srun_hint(library, offered))


def srun_hint(library: str, offered: Sequence[str] = ()) -> str:
    """The launcher to write for an MPI, by its version text, where srun offers these plugins; as exact as may be."""
    names = [name for name in ("pmix", "pmi2", "cray_shasta") if name in offered] or list(offered)
    fitting = _PLUGINS.get(family(library) or "", ())
    exact = next((name for wanted in fitting for name in offered if name.startswith(wanted)), None)
    if exact is not None or (fitting and not offered):
        plugin = exact or fitting[0]
        return f"write `launcher: srun --mpi={plugin} --ntasks={{ranks}}` in the site file: {family(library)} needs it"
    todo = "start with srun --mpi=pmi2 (MPICH, Intel MPI) or srun --mpi=pmix (Open MPI), or with mpiexec of this MPI"
    return todo + (f"; this Slurm offers {', '.join(names)}" if names else "")


def mpi_types(run: Runner) -> list[str]:
    """The plugins `srun --mpi=list` names; it prints them on stdout or stderr, by version."""
    ran = run(["srun", "--mpi=list"])
    words = [line.strip() for line in (ran.out + "\n" + ran.err).splitlines()]
    return [word for word in words if re.fullmatch(r"\w+", word) and word != "none"] if ran.code == 0 else []


_FAMILIES = (
    ("Open MPI", ("open mpi", "openmpi", "open-mpi", "openrte", "prrte")),
    ("Intel MPI", ("intel(r) mpi", "intel mpi")),
    ("Cray MPICH", ("cray mpich",)),
    ("MPICH", ("mpich", "hydra")),
)


# the srun plugins each can start with, best first
_PLUGINS = {
    "Open MPI": ("pmix",),
    "Cray MPICH": ("cray_shasta", "pmi2"),
    "MPICH": ("pmi2", "pmix"),
    "Intel MPI": ("pmi2",),
}


def family(text: str) -> str | None:
    """Which MPI a version text belongs to (of the library, or of `mpiexec --version`)."""
    low = text.lower()
    return next((name for name, marks in _FAMILIES if any(mark in low for mark in marks)), None)


def check_mpi_match(library: str, launcher: str) -> Finding:
    """mpi4py loaded one MPI, mpiexec belongs to another. Both as their version texts."""
    loaded, starts = family(library), family(launcher)
    if loaded is None or starts is None:
        return Finding(Level.OK, "MPI of mpi4py and of mpiexec not both known, not compared", "MPI")
    # mpiexec of all descendants of MPICH is hydra
    same = loaded == starts or (loaded != "Open MPI" and starts != "Open MPI")
    if same:
        return _ok(f"mpi4py and the launcher both belong to {loaded}", "MPI")
    todo = f"put the {loaded} mpiexec first in PATH, or build mpi4py against {starts}: "
    todo += "pip install --no-binary=mpi4py --force-reinstall mpi4py"
    return Finding(Level.FAIL, f"mpi4py uses {loaded}, but mpiexec is of {starts}", "MPI", todo)


# --- cores ------------------------------------------------------------------------------------------------------------

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def reach(cpus: Iterable[int], siblings: str = _SIBLINGS) -> set[int]:
    """These CPUs of this machine and the other threads of their cores: using one thread of each leaves none idle."""
    found: set[int] = set()
    for cpu in cpus:
        found.add(cpu)
        try:
            with open(siblings.format(cpu)) as file:
                text = file.read().strip()
        except OSError:
            continue
        for part in text.split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def check_cores(who: str, cpus: int, reached: int, given: int | None, workers: int | None = None) -> Finding:
    """A launcher binds ranks to cores unless told not to, and then most of the node is idle.

    `who` may use `cpus` CPUs, whose cores have `reached`; Slurm gave `given` on its node (None: not known); `workers`
    are to run there (None: one per CPU).
    """
    todo = "add --cpu-bind=none to srun, --bind-to none to Open MPI's mpiexec, -bind-to none to MPICH's"
    if given is not None and reached < given:
        what = f"{who} may use {cpus} of the {given} CPUs that Slurm gives on its node: the launcher binds it"
        return Finding(Level.FAIL if 2 * reached < given else Level.WARN, what, "launcher", todo)
    if workers is not None and workers > cpus:
        todo = "leave workers: out of the site file, for one per CPU, or " + todo
        return Finding(Level.WARN, f"{workers} workers share the {cpus} CPUs that {who} may use", "workers", todo)
    return _ok(f"{who} may use {cpus} CPUs", "launcher")


# --- files ------------------------------------------------------------------------------------------------------------

_LOCAL = {"tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "rootfs", "aufs"}


def mount_of(path: Path, mounts: str) -> tuple[str, str] | None:
    """Mount point and type of the file system a path is on, from the text of /proc/mounts."""
    found: tuple[str, str] | None = None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        # the last of several mounts on one point hides the others
        if path.is_relative_to(point) and (found is None or len(point) >= len(found[0])):
            found = (point, fields[2])
    return found


def check_shared(path: Path, nodes: int, mounts: str) -> Finding:
    """A task directory on a node's own disk is another directory on every node."""
    mount = mount_of(path, mounts)
    if mount is None:
        return Finding(Level.OK, "kind of file system not known", str(path))
    if mount[1] not in _LOCAL:
        return _ok(f"on {mount[1]}, shared", str(path))
    if nodes == 1:
        return _ok(f"on {mount[1]}, local, which is enough for one node", str(path))
    what = f"the file system at {mount[0]} is {mount[1]}, which only this node sees, but {nodes} nodes are asked for"
    level = Level.FAIL if mount[1] in ("tmpfs", "ramfs") else Level.WARN
    return Finding(level, what, str(path), "put the task on a file system every node sees: yoda run --task DIR")


def check_seen(path: Path, maker: str, sees: Mapping[str, bool]) -> Finding:
    """Which nodes see a file that the node `maker` has made there."""
    blind = [host for host, seen in sees.items() if not seen]
    if not blind:
        return _ok(f"{len(sees)} nodes see what {maker} writes", str(path))
    names = ", ".join(blind[:3]) + (f" and {len(blind) - 3} more" if len(blind) > 3 else "")
    what = f"what {maker} writes is not seen on {names}"
    return Finding(Level.FAIL, what, str(path), "put the task on a file system every node sees: yoda run --task DIR")


def check_directory(path: Path, clock: Callable[[], float] = time.time) -> list[Finding]:
    """What the journal and the leases rest on, tried out: write, exclusive create, rename, fsync, locks, file times."""
    folder = path / f".doctor-{os.uname().nodename}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return [_cannot_write(path, error)]
    trials: list[tuple[str, Callable[[Path], None], str]] = [
        ("exclusive create", _try_exclusive, "two allocations could take the same work: use another file system"),
        ("rename", _try_rename, "use another file system"),
        ("fsync", _try_fsync, "nothing written here is safe: use another file system"),
        (
            "file locks",
            _try_lock,
            "HDF5 needs flock: mount with -o flock (Lustre), or export HDF5_USE_FILE_LOCKING=FALSE in slurm.setup",
        ),
    ]
    findings = []
    try:
        for name, trial, todo in trials:
            try:
                trial(folder)
                findings.append(_ok(f"{name} works", str(path)))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    findings.append(_cannot_write(path, error))
                    continue
                level = Level.WARN if name == "file locks" else Level.FAIL
                findings.append(Finding(level, f"{name} does not work: {error.strerror or error}", str(path), todo))
        findings.append(_check_file_time(folder, path, clock))
    finally:
        for left in folder.iterdir():
            left.unlink(missing_ok=True)
        folder.rmdir()
    return findings


def _cannot_write(path: Path, error: OSError) -> Finding:
    todo = "make room, or correct the permissions, or choose another --task directory"
    return Finding(Level.FAIL, f"cannot write: {error.strerror or error}", str(path), todo)


def _try_exclusive(folder: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(folder / "lease", flags))
    try:
        os.close(os.open(folder / "lease", flags))
    except FileExistsError:
        return
    raise OSError(errno.EINVAL, "the same file was created twice")


def _try_rename(folder: Path) -> None:
    (folder / "new").write_bytes(b"new")
    (folder / "old").write_bytes(b"old")
    os.replace(folder / "new", folder / "old")
    if (folder / "old").read_bytes() != b"new":
        raise OSError(errno.EIO, "the old content is still there")


def _try_fsync(folder: Path) -> None:
    for name in (folder / "synced", folder):
        handle = os.open(name, os.O_RDONLY if name is folder else os.O_CREAT | os.O_WRONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _try_lock(folder: Path) -> None:
    # HDF5 locks with flock, not with fcntl
    with open(folder / "lock", "wb") as one:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_file_time(folder: Path, path: Path, clock: Callable[[], float]) -> Finding:
    before = clock()
    (folder / "time").write_bytes(b"x")
    skew = (folder / "time").stat().st_mtime - before
    if abs(skew) < 5:
        return _ok("file times agree with the clock", str(path))
    todo = "ask the administrators to synchronise the clocks: leases of other allocations are judged by file time"
    return Finding(Level.WARN, f"file times differ from this node's clock by {skew:.0f} s", str(path), todo)


def check_space(path: Path, needed: int) -> Finding:
    """Room for `needed` bytes and some files; `path` need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        stat = os.statvfs(there)
    except OSError as error:
        return _cannot_write(path, error)
    free = stat.f_bavail * stat.f_frsize
    todo = "delete what is no longer needed there, or name another place (scratch: in the site file)"
    if free < needed:
        what = f"{free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed"
        return Finding(Level.FAIL, what, str(path), todo)
    if stat.f_files > 0 and stat.f_favail < 1000:
        return Finding(Level.FAIL, f"only {stat.f_favail} more files can be created", str(path), todo)
    return _ok(f"{free / 1e9:.1f} GB free", str(path))


def check_writable(paths: Sequence[Path]) -> list[Finding]:
    """Places that must be writable; one that does not exist must be creatable."""
    findings = []
    for path in paths:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if os.access(there, os.W_OK | os.X_OK):
            findings.append(_ok("writable", str(path)))
        else:
            findings.append(_cannot_write(path, PermissionError(errno.EACCES, f"no permission in {there}")))
    return findings


def check_open_files(soft: int, hard: int, workers: int) -> Finding:
    """File descriptors: a Droid holds several pipes and shared files per worker."""
    needed = 64 + 8 * workers
    if soft >= needed:
        return _ok(f"{soft} open files allowed", "ulimit -n")
    if hard >= needed:
        what = f"{soft} open files allowed, {needed} needed"
        return Finding(Level.WARN, what, "ulimit -n", f"ulimit -n {hard} in slurm.setup")
    what = f"at most {hard} open files allowed, {needed} needed for {workers} workers"
    return Finding(Level.FAIL, what, "ulimit -n", f"ask for a higher limit, or set workers: {max(1, (hard - 64) // 8)}")


def check_clocks(ahead: Mapping[str, float], uncertain: float = 0.0) -> Finding:
    """Clocks of the nodes: by how many seconds each is ahead of the first, measured to within `uncertain` seconds."""
    if not ahead:
        return _ok("one node", "clocks")
    low, high = min(ahead, key=ahead.__getitem__), max(ahead, key=ahead.__getitem__)
    spread = ahead[high] - ahead[low]
    if spread - uncertain < 2:
        return _ok(f"clocks agree within {max(spread, uncertain):.1f} s", "clocks")
    what = f"the clock of {high} is {spread:.0f} s ahead of that of {low}"
    todo = "times in reports will not fit together; tell the administrators (chronyc tracking on both nodes)"
    return Finding(Level.WARN if spread < 30 else Level.FAIL, what, "clocks", todo)


# --- Slurm ------------------------------------------------------------------------------------------------------------

COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "scancel", "srun")


def check_commands(find: Callable[[str], str | None]) -> Finding:
    """Slurm's commands; `find` is shutil.which or alike."""
    missing = [name for name in COMMANDS if find(name) is None]
    if not missing:
        return _ok("Slurm's commands are there", "PATH")
    todo = "load the site's Slurm module; on a machine without Slurm leave the slurm: part out of the site file"
    return Finding(Level.FAIL, f"not found: {', '.join(missing)}", "PATH", todo)


def check_partition(site: SlurmSite, run: Runner) -> list[Finding]:
    """The partition exists, and whether the cluster warns before it preempts."""
    where = f"slurm.partition: {site.partition or '(default)'}"
    asked = run(["sinfo", "-h", "-o", "%P|%a", *(["-p", site.partition] if site.partition else [])])
    if asked.code:
        return [Finding(Level.FAIL, f"sinfo: {asked.err.strip()}", where, "see whether this node may talk to Slurm")]
    if not asked.out.strip():
        return [Finding(Level.FAIL, "there is no such partition", where, "sinfo -s shows those there are")]
    findings = [_ok("the partition exists", where)]
    if "|up" not in asked.out:
        findings.append(Finding(Level.WARN, "the partition is not up", where, "jobs wait until it is: sinfo -s"))
    config = dict(re.findall(r"(?m)^(\w+)\s*= (.*)$", run(["scontrol", "show", "config"]).out))
    given = config.get("SlurmctldParameters", "") + config.get("PreemptParameters", "")
    if config.get("PreemptMode", "OFF") != "OFF" and "send_user_signal" not in given:
        what = "this cluster does not send our warning signal when it preempts"
        todo = "nothing is lost but the events in flight; administrators can set preempt_send_user_signal"
        findings.append(Finding(Level.WARN, what, where, todo))
    return findings


# --- Python -----------------------------------------------------------------------------------------------------------


def check_yoda_package(search: Sequence[str], ours: Path) -> Finding:
    """`import yoda` must find us and not the histogramming package of the same name.

    `search` is sys.path as a fresh interpreter has it (with PYTHONPATH), `ours` the folder that holds our packages.
    """
    for entry in search:
        folder = Path(entry or ".")
        package = folder / "yoda"
        if not ((package / "__init__.py").exists() or (folder / "yoda.py").exists()):
            continue
        if folder.resolve() == ours.resolve():
            return _ok("import yoda finds this package", str(ours))
        what = f"another package named yoda (the histogramming package YODA?) comes first on the Python path: {package}"
        todo = f"start with the yoda command, which is not misled; for import yoda put {ours} first in PYTHONPATH"
        return Finding(Level.WARN, what, "PYTHONPATH", todo)
    return Finding(Level.FAIL, "import yoda finds nothing", "PYTHONPATH", f"pip install yoda-droid, or add {ours}")
