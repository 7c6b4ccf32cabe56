#!/usr/bin/env bash
# What a finite learning rate does by itself, and what is added to the loss to have the same of a small one (Smith,
# Dherin, Barrett and De 2021, arXiv:2101.12176, figures 2 and 3): 2 500 images as they are, 80 times, by plain
# stochastic gradient descent with a constant learning rate.
source "$(dirname "$0")/common.sh"

# Of the rates tried, the smallest that comes to fit all of its images.
small=0.05
options=(
    --preset nf-wrn-10-1 --images-max 2500 --plain --batch 32 --steps 6240 --warmup 0 --final-share 1
    --momentum 0 --no-nesterov --decay 0 --clip 0 --checkpoint-every 2080 --valid-every 624 --log-every 78
)
for rate in 0.0125 0.05 0.2 0.025 0.1 0.4 0.8; do
    train "regularisation/learning rate/$rate" "${options[@]}" --learning-rate $rate
done
for lambda in 0.05 0.2 0.8 0.1 0.4; do
    train "regularisation/coefficient at $small/$lambda" "${options[@]}" --learning-rate $small --gradient-norm $lambda
done
finish
"$export_program" plot "$runs"/regularisation/learning\ rate/*/ --axis accuracy --over learning-rate \
    --out "$runs/learning-rate.svg" | tee "$runs/learning-rate.txt"
"$export_program" plot "$runs"/regularisation/coefficient\ at\ $small/*/ --axis accuracy --over gradient-norm \
    --out "$runs/gradient-norm.svg" | tee "$runs/gradient-norm.txt"
