#!/usr/bin/env bash
# A small sweep for `aerie-export scaling`: four widths of a network without normalisation, three numbers of
# epochs, four learning rates, on 45 000 images of CIFAR-10, validated on the other 5 000.
source "$(dirname "$0")/common.sh"

images=45000

# stage WIDTH STRIDE
stage() {
    printf '[[stages]]\ndepth = 1\nwidth = %d\nstride = %d\nfirst_middle = %d\nmiddle = %d\ngroup_width = 0\n' \
        "$1" "$2" "$1" "$1"
}

# model WIDTH: a file with the network whose stages have 1, 2 and 4 times so many channels.
model() {
    local file=$runs/scaling/$1.toml
    # Whole or not at all: another run may read it meanwhile.
    {
        cat <<'TOML'
family = "wrn"
classes = 10
activation = "relu"
gains = "exact"
gain_place = "activation"
standardise = "max"
norm = "off"
padding = "symmetric"
beta = "predicted"
alpha = 0.2
branch_end = "skip-init"
block = "basic"
shortcut = "strided"
stem = "3x3-stride-1"
stem_width = 16
head_init = "normal"
dropout = 0.0
attention = { kind = "off" }
stochastic_depth = { rate = 0.0, rescale = false }
TOML
        stage "$1" 1
        stage $((2 * $1)) 2
        stage $((4 * $1)) 2
    } > "$file.new"
    mv "$file.new" "$file"
    echo "$file"
}

mkdir -p "$runs/scaling"
for epochs in 1 2 4; do
    for width in 8 12 16 24; do
        for rate in 0.1 0.2 0.4 0.8; do
            steps=$((epochs * images / 128))
            train "scaling/$width/$epochs-$rate" --model "$(model $width)" --holdout 0.1 --steps $steps \
                --learning-rate $rate --warmup $((steps / 10)) --final-share 0.01 --decay 5e-4 --clip 0.2 \
                --checkpoint-every $steps --valid-every $steps --log-every $((steps / 20))
        done
    done
done
finish
"$export_program" scaling "$runs"/scaling/*/*/ --epoch-size "$images" --out "$runs/laws" | tee "$runs/laws.txt"
