"""Job and site -> an sbatch script that a person can read, keep and submit by hand.

What the script has to get right (each measured on a real Slurm, see tests/slurm):

* **The launcher's exit code says nothing.** Open MPI's mpirun returns 0 when Slurm killed its daemons or a node died.
  Only the file YODA_EXIT_FILE, which Yoda writes last, counts; no file means there is work left.
* **A script that ends is a finished job.** While there is work left it asks Slurm to requeue the job and then waits to
  be killed. Slurm requeues preempted jobs by itself, but only if the script is still there.
* **A cancelled job stays cancelled.** Asking to requeue would bring it back. While a job ends, Slurm calls it
  COMPLETING whatever the reason, so the script asks for a requeue only while it is RUNNING or was ended by its time
  limit.
* **TIMEOUT is not requeued by Slurm**, so some seconds before the end the script requeues whatever Yoda is still doing:
  a kill costs the events in flight, a job that is not requeued costs the night.
* **Slurm signals in several ways.** `--signal=B:USR1@N` reaches the shell alone, before the end or at the start of a
  grace time; SIGTERM reaches every process of the job, which is why the launcher gets its own session, and why whatever
  arrives is passed on as USR1 (srun and mpiexec end the job on SIGTERM).
* **`wait` returns when a trap ran**, so it stands in a loop.
* **A job that does nothing must not be requeued for ever**: a launcher that cannot start, Droids that cannot work, a
  node that always dies, an event that is longer than an allocation. Five starts in a row in which no event was
  done end the job, whatever ended them; only a preemption does not count. The script notes a start before it
  begins, so that one that was killed without a word counts, and passes the note on to the job it submits.

Placement: one rank more than nodes, the extra one being Yoda, on the first node. Asking sbatch for one task per node
and the launcher for nodes + 1 ranks needs the environment below: Open MPI counts one slot per node and binds each rank
to one core, `srun` refuses the extra task and binds too. With it mpiexec of Open MPI and MPICH and srun all put two
ranks on the first node, one on each other, all of them free to use every core of theirs.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from slurm.site import SlurmSite, clock_text, seconds

DEFAULT_LAUNCHER = "mpiexec -n {ranks}"
# with the pauses between short ones, 10 s to 270 s, more than the 300 s Slurm takes by default to call a dead node dead
MAX_BARREN_STARTS = 5

#: The environment that places ranks, as the script exports it, for whoever starts a launcher without the script.
PLACEMENT = {
    "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_mapping_policy": "node",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "SLURM_OVERCOMMIT": "1",
    "SLURM_CPU_BIND": "none",
}


def sbatch_script(
    job_name: str,
    site: SlurmSite,
    command: Sequence[str],
    *,
    script_path: Path,
    logs: Path,
    launcher: str = DEFAULT_LAUNCHER,
    workdir: Path | None = None,
    max_barren_starts: int = MAX_BARREN_STARTS,
) -> str:
    """The text of the script that works on a task until it is complete.

    `command` is what every rank runs, such as `["yoda", "run", "job.yaml"]`; `script_path` is where the caller will
    write the text (needed to submit it again); `logs` an existing folder every node sees; `launcher` may use `{ranks}`
    and `{nodes}`.
    """
    start = launcher.replace("{ranks}", '"$RANKS"').replace("{nodes}", '"$SLURM_JOB_NUM_NODES"')
    return _TEMPLATE.format(
        name=job_name,
        sbatch="\n".join(f"#SBATCH {option}" for option in sbatch_options(job_name, site, logs)),
        cd=f"cd {shlex.quote(str(workdir))} || exit 78\n" if workdir else "",
        setup="\n".join(site.setup_lines) or "# (none in the site file)",
        logs=shlex.quote(str(logs)),
        script=shlex.quote(str(script_path)),
        start=f"{start} {shlex.join(command)}",
        patience=site.patience,
        most=max_barren_starts,
        come_back=_REQUEUE if site.requeue else _RESUBMIT,
    )


def sbatch_options(job_name: str, site: SlurmSite, logs: Path) -> list[str]:
    """The options for sbatch that describe one allocation."""
    given: list[tuple[str, object]] = [
        ("job-name", job_name),
        ("partition", site.partition),
        ("account", site.account),
        ("qos", site.qos),
        ("constraint", site.constraint),
        ("reservation", site.reservation),
        ("gres", site.gres),
        ("nodes", site.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", site.cpus_per_node),
        ("exclusive", site.exclusive),
        ("time", clock_text(seconds(site.time))),
        ("time-min", clock_text(site.shortest) if site.time_min is not None else None),
        ("requeue" if site.requeue else "no-requeue", True),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{site.lead}"),
        ("output", str(logs).replace("%", "%%") + "/slurm-%j.out"),
    ]
    options = [_option(key, value) for key, value in given if value is not None and value is not False]
    return options + [_quoted(option) for option in site.extra]


def _option(key: str, value: object) -> str:
    return f"--{key}" if value is True else _quoted(f"--{key}={value}")


def _quoted(option: str) -> str:
    """An #SBATCH line is split at blanks unless they stand in double quotes."""
    key, equals, value = option.partition("=")
    if equals and any(character in value for character in " \t#'"):
        return f'{key}="{value}"'
    return option


# where the site forbids a requeue the script submits itself again, and may then end
_RESUBMIT = ' sbatch "$script" "$chain" && exit 75'
# a refusal can also mean that Slurm has just requeued the job by itself: the next look tells, or there would be two
_REQUEUE = """
            scontrol requeue "$SLURM_JOB_ID" && break
            [ $((refused += 1)) -ge 2 ] && sbatch "$script" "$chain" && exit 75"""

_TEMPLATE = """\
#!/bin/bash
# One allocation of task {name}, written by `yoda submit`. It can be kept, changed and submitted by hand.
# Exit codes: 0 complete, 65 complete but events are quarantined, 73 cannot write, 78 configuration, 75 work is left.
{sbatch}

say() {{ printf '%(%F %T)T allocation %s.%s: %s\\n' -1 "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}" "$*"; }}
ask() {{ SLURM_TIME_FORMAT=standard scontrol show job -o "$SLURM_JOB_ID" | sed -n "s/.* $1=\\([^ ]*\\).*/\\1/p"; }}

# --- warnings: before the time limit, at preemption, by scancel
launcher= warned= late= alarm=
warn() {{
    say "$1 received, Yoda is told to stop"
    [ -n "$launcher" ] && kill -USR1 "$launcher" 2> /dev/null
    # what is not done by then is given up: to be requeued matters more
    if [ -z "$warned" ]; then (sleep {patience} && kill -USR2 $$) & alarm=$!; fi
    warned=$1
}}
trap 'warn USR1' USR1
trap 'warn TERM' TERM
trap 'late=1' USR2

# --- site
{setup}

# --- ranks: one Droid per node, and Yoda beside the first
{cd}RANKS=$((SLURM_JOB_NUM_NODES + 1))
# every Droid may use all cores of its node, and the extra rank has no slot: for Open MPI 5, Open MPI 4, srun
export PRTE_MCA_rmaps_default_mapping_policy=node:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_rmaps_base_mapping_policy=node OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
export SLURM_OVERCOMMIT=1 SLURM_CPU_BIND=none

# --- what the run tells us, and we tell the run
logs={logs}
script={script}
export YODA_EXIT_FILE=$logs/slurm-$SLURM_JOB_ID.exit     # written by Yoda at its end; no file = work is left
export YODA_END_FILE=$logs/slurm-$SLURM_JOB_ID.end       # when Slurm will end this allocation, unix time
rm -f "$YODA_EXIT_FILE"
watch_end() {{
    while :; do
        end=$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e) && end=$(date -d "$end" +%s) &&
            echo "$end" > "$YODA_END_FILE.new" && mv "$YODA_END_FILE.new" "$YODA_END_FILE"
        sleep 60
    done
}}
watch_end 2> /dev/null &
watcher=$!

# --- a job that does nothing ends: one line for each start since an event was done
chain=${{1:-$SLURM_JOB_ID}}                                # the first of the jobs that submitted one another
export YODA_DONE_FILE=$logs/slurm-$chain.done            # how many events are done, as far as Yoda lived to tell
barren=$logs/slurm-$chain.barren
settled() {{ cat "$YODA_DONE_FILE" 2> /dev/null || echo 0; }}
give_up() {{
    say "gives up: {most} starts in a row ended and no event was done; see above why. To go on: sbatch $script"
    rm -f "$barren"
    kill $watcher
    exit 1
}}
before=$(settled)
[ "$(tail -n 1 "$barren" 2> /dev/null | cut -d ' ' -f 1)" = "$before" ] || rm -f "$barren"
[ -e "$barren" ] && [ "$(wc -l < "$barren")" -ge {most} ] && give_up
echo "$before events were done before a start on $SLURM_JOB_NODELIST" >> "$barren"

# Open MPI keeps a folder in /tmp, named after its process id; one left by a launcher that was killed stops the next of
# that id. So it gets a place of its own.
own=
if [ "$SLURM_JOB_NUM_NODES" = 1 ] && [ -z "$PRTE_MCA_prte_tmpdir_base" ]; then
    own=$(mktemp -d "${{TMPDIR:-/tmp}}/yoda-$SLURM_JOB_ID.XXXXXX") && export PRTE_MCA_prte_tmpdir_base=$own
    trap 'rm -rf "$own"' EXIT
fi

say "starts on $SLURM_JOB_NODELIST"
# a session of its own: Slurm's SIGTERM to the job must not end the launcher before its ranks
setsid {start} &
launcher=$!
[ -n "$own" ] && unset PRTE_MCA_prte_tmpdir_base # gone when this ends, and sbatch passes on what is set
[ -n "$warned" ] && kill -USR1 "$launcher"
# wait returns whenever a trap has run
while [ -z "$late" ] && kill -0 "$launcher" 2> /dev/null; do wait "$launcher"; done
kill $watcher $alarm 2> /dev/null

# --- the only sign of success is Yoda's own
code=$(cat "$YODA_EXIT_FILE" 2> /dev/null)
if [ -n "$code" ] && [ "$code" != 75 ]; then
    say "ends with code $code"
    exit "$code"
fi

# --- work is left: come back, and stay until Slurm ends us, for a script that ends is a job that is done
look() {{ state=$(ask JobState) reason=$(ask Reason) preempted=$(ask PreemptTime); }}
look
say "work is left; for Slurm the job is $state, reason $reason, preempted ${{preempted:=None}}"
if [ "$(settled)" != "$before" ]; then
    rm -f "$barren"
elif [ "$preempted" != None ]; then
    sed -i '$d' "$barren"
elif starts=$(wc -l < "$barren") && [ "$starts" -ge {most} ]; then
    give_up
elif [ -z "$warned" ] && [ $SECONDS -lt 60 ]; then
    sleep $((10 * 3 ** (starts - 1)))     # if a node has just died, Slurm must notice before it gives us nodes again
fi
refused=0
for _ in {{1..60}}; do
    look
    case $state/$reason/${{preempted:-None}} in
        RUNNING/* | */TimeLimit/* | COMPLETING/*/[0-9]*){come_back} ;;
        //*) ;;     # Slurm does not answer
        *) break ;; # Slurm is ending the job already: cancelled, or requeued after a preemption or a node failure
    esac
    sleep 5
done
for _ in {{1..600}}; do sleep 1; done
exit 75
"""
