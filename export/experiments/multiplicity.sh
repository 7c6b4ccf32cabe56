#!/usr/bin/env bash
# Augmentation multiplicity at equal gradient evaluations: each image is shown 1, 2 or 4 times within a batch of
# the same size, or within one that grows (Fort et al. 2021, arXiv:2105.13343). All runs see 400 000 augmented images.
source "$(dirname "$0")/common.sh"

seen=400000
# one MODE MULTIPLICITY RATE OPTIONS...: a run of 128 images to a batch, or of as many times MULTIPLICITY.
one() {
    local mode=$1 multiplicity=$2 rate=$3 batch=128
    shift 3
    if [ "$mode" = growing ]; then
        batch=$((batch * multiplicity))
        set -- --growing "$@"
    fi
    local steps=$((seen / batch))
    train "multiplicity/$mode/$multiplicity-$rate" --preset nf-wrn-10-1 --batch 128 --multiplicity "$multiplicity" \
        --steps "$steps" --learning-rate "$rate" --warmup $((steps / 8)) --final-share 0.01 --decay 5e-4 --clip 0.2 \
        --checkpoint-every "$steps" --valid-every "$steps" --log-every $((steps / 40)) "$@"
}

rates="0.2 0.1 0.4"
for rate in $rates; do
    one fixed 1 $rate
    for multiplicity in 2 4; do
        one fixed $multiplicity $rate
        one growing $multiplicity $rate
    done
done
finish
mkdir -p "$runs/multiplicity/growing"
for rate in $rates; do
    # Shown once, a batch does not grow.
    if [ -e "$runs/multiplicity/fixed/1-$rate" ]; then
        cp -rT "$runs/multiplicity/fixed/1-$rate" "$runs/multiplicity/growing/1-$rate"
    fi
done
"$export_program" plot "$runs"/multiplicity/*/*/ --axis accuracy --over multiplicity --out "$runs/multiplicity.svg" |
    tee "$runs/multiplicity.txt"
