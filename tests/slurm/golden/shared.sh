#!/bin/bash
# One allocation of task zjets-shower, written by `yoda submit`. It can be kept, changed and submitted by hand.
# Exit codes: 0 complete, 65 complete but events are quarantined, 73 cannot write, 78 configuration, 75 work is left.
#SBATCH --job-name=zjets-shower
#SBATCH --partition=grid
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=/data/zjets/logs/slurm-%j.out

say() { printf '%(%F %T)T allocation %s.%s: %s\n' -1 "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$*"; }
ask() { SLURM_TIME_FORMAT=standard scontrol show job -o "$SLURM_JOB_ID" | sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }

# --- warnings: before the time limit, at preemption, by scancel
launcher= warned= late= alarm=
warn() {
    say "$1 received, Yoda is told to stop"
    [ -n "$launcher" ] && kill -USR1 "$launcher" 2> /dev/null
    # what is not done by then is given up: to be requeued matters more
    if [ -z "$warned" ]; then (sleep 100 && kill -USR2 $$) & alarm=$!; fi
    warned=$1
}
trap 'warn USR1' USR1
trap 'warn TERM' TERM
trap 'late=1' USR2

# --- site
# (none in the site file)

# --- ranks: one Droid per node, and Yoda beside the first
cd /home/me/work || exit 78
RANKS=$((SLURM_JOB_NUM_NODES + 1))
# every Droid may use all cores of its node, and the extra rank has no slot: for Open MPI 5, Open MPI 4, srun
export PRTE_MCA_rmaps_default_mapping_policy=node:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_rmaps_base_mapping_policy=node OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
export SLURM_OVERCOMMIT=1 SLURM_CPU_BIND=none

# --- what the run tells us, and we tell the run
logs=/data/zjets/logs
script=/data/zjets/logs/submit.sh
export YODA_EXIT_FILE=$logs/slurm-$SLURM_JOB_ID.exit     # written by Yoda at its end; no file = work is left
export YODA_END_FILE=$logs/slurm-$SLURM_JOB_ID.end       # when Slurm will end this allocation, unix time
rm -f "$YODA_EXIT_FILE"
watch_end() {
    while :; do
        end=$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e) && end=$(date -d "$end" +%s) &&
            echo "$end" > "$YODA_END_FILE.new" && mv "$YODA_END_FILE.new" "$YODA_END_FILE"
        sleep 60
    done
}
watch_end 2> /dev/null &
watcher=$!

# --- a job that does nothing ends: one line for each start since an event was done
chain=${1:-$SLURM_JOB_ID}                                # the first of the jobs that submitted one another
export YODA_DONE_FILE=$logs/slurm-$chain.done            # how many events are done, as far as Yoda lived to tell
barren=$logs/slurm-$chain.barren
settled() { cat "$YODA_DONE_FILE" 2> /dev/null || echo 0; }
give_up() {
    say "gives up: 5 starts in a row ended and no event was done; see above why. To go on: sbatch $script"
    rm -f "$barren"
    kill $watcher
    exit 1
}
before=$(settled)
[ "$(tail -n 1 "$barren" 2> /dev/null | cut -d ' ' -f 1)" = "$before" ] || rm -f "$barren"
[ -e "$barren" ] && [ "$(wc -l < "$barren")" -ge 5 ] && give_up
echo "$before events were done before a start on $SLURM_JOB_NODELIST" >> "$barren"

# Open MPI keeps a folder in /tmp, named after its process id; one left by a launcher that was killed stops the next of
# that id. So it gets a place of its own.
own=
if [ "$SLURM_JOB_NUM_NODES" = 1 ] && [ -z "$PRTE_MCA_prte_tmpdir_base" ]; then
    own=$(mktemp -d "${TMPDIR:-/tmp}/yoda-$SLURM_JOB_ID.XXXXXX") && export PRTE_MCA_prte_tmpdir_base=$own
    trap 'rm -rf "$own"' EXIT
fi

say "starts on $SLURM_JOB_NODELIST"
# a session of its own: Slurm's SIGTERM to the job must not end the launcher before its ranks
setsid mpiexec -n "$RANKS" yoda run job.yaml --site 'my site.yaml' --task /data/zjets &
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
look() { state=$(ask JobState) reason=$(ask Reason) preempted=$(ask PreemptTime); }
look
say "work is left; for Slurm the job is $state, reason $reason, preempted ${preempted:=None}"
if [ "$(settled)" != "$before" ]; then
    rm -f "$barren"
elif [ "$preempted" != None ]; then
    sed -i '$d' "$barren"
elif starts=$(wc -l < "$barren") && [ "$starts" -ge 5 ]; then
    give_up
elif [ -z "$warned" ] && [ $SECONDS -lt 60 ]; then
    sleep $((10 * 3 ** (starts - 1)))     # if a node has just died, Slurm must notice before it gives us nodes again
fi
refused=0
for _ in {1..60}; do
    look
    case $state/$reason/${preempted:-None} in
        RUNNING/* | */TimeLimit/* | COMPLETING/*/[0-9]*) sbatch "$script" "$chain" && exit 75 ;;
        //*) ;;     # Slurm does not answer
        *) break ;; # Slurm is ending the job already: cancelled, or requeued after a preemption or a node failure
    esac
    sleep 5
done
for _ in {1..600}; do sleep 1; done
exit 75
