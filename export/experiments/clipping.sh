#!/usr/bin/env bash
# What adaptive gradient clipping is for: large batches at large learning rates (Brock, De, Smith and Simonyan 2021,
# arXiv:2102.06171, section 4 and figure 2). A wide residual network of 16 layers without normalisation on CIFAR-10,
# thirty epochs of 2048 images to a step, over learning rates and clips, beside batch normalisation.
source "$(dirname "$0")/common.sh"

steps=720
options=(
    --batch 2048 --steps $steps --warmup 120 --final-share 0.01 --decay 5e-4 --checkpoint-every $steps
    --valid-every 120 --log-every 12
)
for rate in 1.6 0.8 0.4 0.2; do
    for clip in 0.03 0.1; do
        train "clipping/NF, clipped at $clip/$rate" --preset nf-wrn-16-1 --clip $clip --learning-rate $rate "${options[@]}"
    done
    train "clipping/NF/$rate" --preset nf-wrn-16-1 --clip 0 --learning-rate $rate "${options[@]}"
    train "clipping/batch norm/$rate" --preset wrn-16-1 --clip 0 --learning-rate $rate "${options[@]}"
done
finish
"$export_program" plot "$runs"/clipping/*/*/ --axis accuracy --over learning-rate --out "$runs/clipping.svg" |
    tee "$runs/clipping.txt"
