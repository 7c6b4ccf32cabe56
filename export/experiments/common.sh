# What the experiments share: arguments, and runs that are taken up where they were cut off.
#
# Each script takes a folder for its runs and one with CIFAR-10 in parquet (train.parquet, test.parquet). A second
# call goes on where the first was stopped. AERIE_EXPORT names the program, THREADS says how many it uses.
set -euo pipefail
trap 'exit 130' INT TERM

if [ $# -ne 2 ]; then
    echo "usage: $0 RUNS CIFAR10" >&2
    exit 2
fi
runs=$1
cifar=$2
export_program=${AERIE_EXPORT:-aerie-export}
threads=(--threads "${THREADS:-2}")

# is_at_end RUN: whether its log has its last step.
is_at_end() {
    local steps last
    steps=$(sed -n 's/^steps = //p' "$1/run.toml" 2>/dev/null) || return 1
    last=$(tail -n 1 "$1/log.csv" 2>/dev/null) || return 1
    [ "${last%%,*}" = "$steps" ]
}

# train RUN OPTIONS...: a run with these options, to its end. One that diverges is left as it is.
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
    echo "$run"
    # tee is to outlive an interrupt, so that the run can say that it has stopped.
    "$export_program" train --run "$run" "${threads[@]}" "$@" 2>&1 | tee -i "$run.txt" || true
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
