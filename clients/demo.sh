#!/usr/bin/env bash
# Serves the bundled models, streams a tale over QUIC, has a picture classified, shows a few metrics, stops.
# `make demo` builds what this needs. DEMO_MODEL and DEMO_CLASSIFIER name other bundles, DEMO_PICTURE another picture.
set -euo pipefail
cd "$(dirname "$0")/.."

export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$PWD/.deps/onnxruntime/libonnxruntime.so}
model=${DEMO_MODEL:-models/bundles/tales}
classifier=${DEMO_CLASSIFIER:-models/bundles/pictures}
picture=${DEMO_PICTURE:-docs/ship.jpg}
bin=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

stop() {
    if [ -n "${server:-}" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap stop EXIT

say "1. Serving $model and $classifier"
"$bin/aerie-serve" --model "$model" --model "$classifier" --data "$work/data" --addresses "$work/addresses" \
    --grpc 127.0.0.1:0 --quic 127.0.0.1:0 --http 127.0.0.1:0 --log warn &
server=$!
for _ in $(seq 100); do
    [ -s "$work/addresses" ] && break
    kill -0 "$server" 2>/dev/null || exit 1
    sleep 0.1
done
[ -s "$work/addresses" ] || { echo "the server was not ready within 10 s" >&2; exit 1; }
cat "$work/addresses"
grpc=$(grep '^grpc://' "$work/addresses")
quic=$(grep '^quic://' "$work/addresses")
http=$(grep '^http://' "$work/addresses")

say "2. A tale, streamed over QUIC"
"$bin/aerie" --server "$quic" --certificate "$work/data/tls/certificate.pem" generate --echo --show-stats \
    --temperature 0.8 --top-p 0.95 --seed 7 --tokens 200 \
    "Once upon a time there was a little girl who"

say "3. What is on $picture"
"$bin/aerie" --server "$grpc" classify --top 3 "$picture"

say "4. What Prometheus sees"
python3 - "$http/metrics" <<'PY'
import sys, urllib.request

wanted = ("serve_tokens_total", "serve_generations_finished_total", "serve_sessions",
          "serve_step_duration_seconds_sum", "serve_step_duration_seconds_count",
          "serve_calls_total")
for line in urllib.request.urlopen(sys.argv[1]).read().decode().splitlines():
    if line.startswith(wanted) and not line.endswith(" 0"):
        print(line)
PY

say "5. Draining the server"
