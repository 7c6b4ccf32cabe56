#!/usr/bin/env bash
# NF-ResNets beside the same network with batch normalisation and with neither, over sizes of the batch: wide
# residual networks of 16 layers on CIFAR-10, four epochs each, learning rates that grow with the batch and, for
# large batches, smaller ones (Brock, De, Smith and Simonyan 2021, arXiv:2102.06171, figure 2a, for the clipping of
# gradients at large batches).
source "$(dirname "$0")/common.sh"

images=50000
epochs=4
for batch in 128 512 2048 4096; do
    steps=$((epochs * images / batch))
    rates="0.2 0.05"
    if [ $batch -gt 128 ]; then rates+=" 0.0125"; fi
    for rate in $rates; do
        options=(
            --batch "$batch" --steps "$steps" --warmup $((steps / epochs)) --final-share 0.01 --decay 5e-4
            --learning-rate "$(calc "$rate * $batch / 128")"
            --checkpoint-every "$steps" --valid-every $((steps / epochs)) --log-every $((1 + steps / 40))
        )
        train "normalisation/NF, clipped/$batch-$rate" --preset nf-wrn-16-1 --clip 0.1 "${options[@]}"
        train "normalisation/NF/$batch-$rate" --preset nf-wrn-16-1 --clip 0 "${options[@]}"
        train "normalisation/batch norm/$batch-$rate" --preset wrn-16-1 --clip 0 "${options[@]}"
        train "normalisation/neither/$batch-$rate" --preset wrn-16-1-bare --clip 0 "${options[@]}"
    done
done
finish
"$export_program" plot "$runs"/normalisation/*/128-0.2/ --axis accuracy --out "$runs/normalisation-curves.svg"
"$export_program" plot "$runs"/normalisation/*/*/ --axis accuracy --over batch --out "$runs/normalisation.svg" |
    tee "$runs/normalisation.txt"
