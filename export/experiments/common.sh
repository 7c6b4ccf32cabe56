# What the experiments share: arguments, and runs that are taken up where they were cut off.
#
# Each script takes a folder for its runs and one with CIFAR-10 in parquet (train.parquet, test.parquet). A second
# call goes on where the first was stopped. AERIE_EXPORT names the program, JOBS says how many runs go on at a time
# (1), THREADS how many threads each has (2), DEVICE where they train (cpu).
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: $0 RUNS CIFAR10" >&2
    exit 2
fi
runs=$1
cifar=$2
export_program=${AERIE_EXPORT:-aerie-export}
jobs_max=${JOBS:-1}
if ! [[ $jobs_max =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "JOBS is $jobs_max; a number from 1 is expected" >&2
    exit 2
fi
where=(--threads "${THREADS:-2}" --device "${DEVICE:-cpu}")

# is_at_end RUN: whether its log has its last step.
is_at_end() {
    local steps last
    steps=$(sed -n 's/^steps = //p' "$1/run.toml" 2>/dev/null) || return 1
    last=$(tail -n 1 "$1/log.csv" 2>/dev/null) || return 1
    [ "${last%%,*}" = "$steps" ]
}

# Ctrl-C stops all runs, each with a checkpoint.
stop() {
    for job in $(jobs -p); do
        kill -INT -- "-$job" 2>/dev/null || true
    done
    wait
    exit 130
}
trap stop INT TERM

# train RUN OPTIONS...: a run with these options, to its end. One that diverges is left as it is. It may go on
# when this returns: `finish` waits. After a run that failed, none begins.
going_on=0
failed=false
train() {
    local run=$runs/$1
    shift
    if is_at_end "$run" || [ -e "$run.diverged" ]; then
        return
    fi
    if [ -e "$run/run.toml" ]; then
        set -- --resume
    else
        case " $* " in
            *" --holdout "*) ;;
            *) set -- --valid "$cifar/test.parquet" "$@" ;;
        esac
        set -- --images "$cifar/train.parquet" --matmul bf16 "$@"
    fi
    mkdir -p "$(dirname "$run")"
    if [ "$going_on" -ge "$jobs_max" ]; then
        await
    fi
    if $failed; then
        finish
    fi
    # A group of its own, which `stop` can reach.
    set -m
    to_its_end "$run" "$@" &
    set +m
    going_on=$((going_on + 1))
}

# await: waits for one of the runs.
await() {
    wait -n || failed=true
    going_on=$((going_on - 1))
}

# finish: waits for all of them.
finish() {
    while [ "$going_on" -gt 0 ]; do
        await
    done
    if $failed; then
        exit 1
    fi
}

# to_its_end RUN OPTIONS...
to_its_end() {
    local run=$1
    shift
    echo "$run"
    # tee is to outlive an interrupt, so that the run can say that it has stopped.
    "$export_program" train --run "$run" "${where[@]}" "$@" 2>&1 | tee -i "$run.txt" || true
    if is_at_end "$run"; then
        return
    elif grep -q "the loss is" "$run.txt"; then
        mv "$run.txt" "$run.diverged"
    else
        echo "$run is not at its end" >&2
        exit 1
    fi
}

# calc EXPRESSION: its value.
calc() {
    python3 -c "print(f'{$1:.6g}')"
}
