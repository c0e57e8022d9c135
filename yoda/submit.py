"""`yoda submit`: the task is made and checked here, on the login node; Slurm gets one script that a person can read.

Everything of a submission stays in TASK/slurm: the script, the output of each job, and what script and Yoda tell each
other. A dry run makes nothing: it counts the inputs, shows the script, and asks Slurm what it would do with it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eventrange.durable import explain
from eventrange.errors import ConfigError, SlurmRefused, YodaError
from slurm.commands import Runner, run_command
from slurm.fit import Fit, fit
from slurm.script import sbatch_script
from slurm.site import SlurmSite, clock_text, seconds
from slurm.submit import Submitted, core_hours, forecast, submit
from stageout import breakerfile
from yoda.nodes import off_now
from yoda.placing import script_launcher
from yoda.prepared import finished, prepare
from yoda.queues import Queues
from yoda.setting import Request, Setting, read
from yoda.trial import try_payload


@dataclass(frozen=True)
class Asked:
    """What the command line of `yoda submit` says besides job, site and task."""

    allocations: int = 1
    fit: bool = False
    dry_run: bool = False
    force: bool = False  # though the queue is off


@dataclass
class Outcome:
    """What became of it: the exit code if nothing was to be done, or the jobs; `lines` is what to tell people."""

    code: int = 0
    script: str = ""
    jobs: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def submit_task(request: Request, asked: Asked, run: Runner = run_command) -> Outcome:
    """Check the task, write the script, and submit it `allocations` times; or only show it (`dry_run`).

    Raises YodaError: anything wrong with job, site or inputs (78), and what Slurm answers.
    """
    setting = read(request, here=False)
    site = slurm_of(setting)
    if asked.dry_run:
        return _rehearse(setting, site, asked, run)
    prepared = prepare(setting)
    code = finished(prepared)
    if code is not None:
        said = "complete" if code == 0 else "complete, but for quarantined events (yoda run --retry-quarantined)"
        return Outcome(code, lines=[f"task {setting.job.task} is {said}: nothing to submit"])
    warning = try_payload(setting.job, setting.site, request.sets)
    queues = Queues(setting, prepared.frozen.fingerprint, run, time.time())
    queues.learn()
    allocations, remark = queues.ask(asked.allocations, asked.force)
    avoided = off_options(setting, site, run)
    folder = setting.taskdir.slurm
    path = os.path.join(folder, f"allocation-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.sh")
    text = script_of(setting, site, path)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o755)
    except OSError as error:
        raise explain(error, path) from error
    outcome = Outcome(script=path, lines=[f"script     {path}", f"output     {folder}/slurm-JOBID.out"])
    if warning:
        outcome.lines.append(f"warning    {warning}")
    outcome.lines += [f"warning    {remark}"] if remark else []
    outcome.lines += [f"without    {avoided[0].partition('=')[2]}: payloads failed there"] if avoided else []
    for _ in range(allocations):
        chosen = fit(Path(path), site, run, time.time()) if asked.fit else None
        job: Submitted = submit(Path(path), run, (*(chosen.options if chosen else ()), *avoided))
        outcome.jobs.append(job.jobid)
        queues.submitted(job.jobid)
        outcome.lines.append(f"submitted  job {job.jobid}" + (f": {_in_words(chosen)}" if chosen else ""))
    outcome.lines.append(_cost(site, run, allocations))
    outcome.lines.append(f"next       yoda status {setting.taskdir.root}")
    return outcome


def off_options(setting: Setting, site: SlurmSite, run: Runner) -> tuple[str, ...]:
    """The option that keeps nodes out on which payloads failed in earlier allocations, if enough others are left. Slurm
    refuses names it does not know, so it is asked for them."""
    state = breakerfile.load(breakerfile.state_path(setting.site.stageout_rules, setting.taskdir.root))
    off = {name.partition(".")[0] for name in off_now(state, setting.site.node_breaker, time.time())}
    if not off:
        return ()
    asked = run(["sinfo", "-h", "-N", "-o", "%N", *(["-p", site.partition] if site.partition else [])])
    there = set(asked.out.split()) if asked.code == 0 else set()
    names = sorted(off & there)
    return (f"--exclude={','.join(names)}",) if names and len(there) - len(names) >= site.nodes else ()


def slurm_of(setting: Setting) -> SlurmSite:
    """The `slurm:` part of the site; ConfigError where there is none."""
    if setting.site.slurm is None:
        hint = "write for example `slurm: {partition: regular, nodes: 4, time: 4h}`; without Slurm use yoda run"
        raise ConfigError(file=setting.request.site or "site defaults", key="slurm", detail="is missing", hint=hint)
    return setting.site.slurm


def script_of(setting: Setting, site: SlurmSite, path: str) -> str:
    """The script of one allocation, as it will be at `path`. Its command names everything by absolute path."""
    from dataclasses import replace

    request = replace(
        setting.request,
        job=setting.job.path,
        site=setting.site.path,
        task=setting.taskdir.root,
        time=None,
    )
    return sbatch_script(
        setting.job.task,
        site,
        [*yoda_command(), *request.arguments()],
        script_path=Path(path),
        logs=Path(setting.taskdir.slurm),
        launcher=script_launcher(setting.site.launcher),
        workdir=Path(os.getcwd()),
    )


def yoda_command() -> list[str]:
    """How a rank starts Yoda: the command beside this Python, for a batch job need not have it on its PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "yoda")
    if os.access(beside, os.X_OK):
        return [beside]
    import eventrange.entry

    return [sys.executable, os.path.abspath(eventrange.entry.__file__)]


def _rehearse(setting: Setting, site: SlurmSite, asked: Asked, run: Runner) -> Outcome:
    """The script, what it would cost, and when Slurm would start it; nothing is written but a temporary file."""
    from yoda.plan import plan

    found = plan(setting)
    events = found["events"]
    path = os.path.join(setting.taskdir.slurm, "allocation-TIME.sh")
    text = script_of(setting, site, path)
    lines = [text.rstrip("\n"), ""]
    left = events["total"] - events["done"] - events["quarantined"]
    lines.append(f"events     {left} of {events['total']} to do")
    if left == 0:
        lines.append("           the task is complete: nothing would be submitted")
    warning = try_payload(setting.job, setting.site, setting.request.sets)
    if warning:
        lines.append(f"warning    {warning}")
    off = Queues(setting, "", run, time.time()).why()
    if off and not asked.force:
        lines.append(f"warning    nothing would be submitted: its allocations end and nothing is done; {off}")
    lines.append(_cost(site, run, asked.allocations))
    with tempfile.TemporaryDirectory(prefix="yoda-submit-") as folder:
        trial = Path(folder) / "allocation.sh"
        trial.write_text(text)
        try:
            if asked.fit:
                lines.append(f"would fit  {_in_words(fit(trial, site, run, time.time()))}")
            told = forecast(trial, run)
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.start))
            lines.append(f"forecast   Slurm would start it at {when} at the latest, on {told.nodes}")
        except SlurmRefused as error:
            return Outcome(error.exit_code, lines=[*lines, f"forecast   none: {error}"])
        except YodaError as error:  # a script can be looked at where there is no Slurm
            lines.append(f"forecast   none: {str(error).splitlines()[0]}")
    return Outcome(lines=lines)


def _in_words(chosen: Fit) -> str:
    return f"{chosen.shape.nodes} nodes for {clock_text(chosen.shape.length)} ({chosen.why})"


def _cost(site: SlurmSite, run: Runner, allocations: int) -> str:
    cpus = cpus_per_node(site, run)
    shape = f"{site.nodes} node{'s' * (site.nodes != 1)} x {clock_text(seconds(site.time))}"
    if allocations > 1:
        shape = f"{allocations} x ({shape})"
    if cpus is None:
        return f"cost       {shape}; cores per node are not known here"
    total = allocations * core_hours(site, cpus)
    return f"cost       at most {total:,.1f} core-hours: {shape} x {cpus} cores"


def cpus_per_node(site: SlurmSite, run: Runner) -> int | None:
    """Cores that are charged per node: those asked for, or all that the partition's nodes have."""
    if site.cpus_per_node is not None:
        return site.cpus_per_node
    asked = run(["sinfo", "-h", "-o", "%c|%P", *(["-p", site.partition] if site.partition else [])])
    rows = [line.split("|") for line in asked.out.splitlines()] if asked.code == 0 else []
    if not site.partition:
        rows = [row for row in rows if row[1].endswith("*")]
    counts = [int(row[0].rstrip("+")) for row in rows if row[0].rstrip("+").isdigit()]
    return max(counts, default=None)


def show(outcome: Outcome, lines: Sequence[str] = ()) -> str:
    """The outcome for people."""
    return "\n".join([*outcome.lines, *lines])
