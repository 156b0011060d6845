#!/usr/bin/env bash
# Everything that one GPU is to say, into $OUT (runs/gpu without it): the check against the CPU, a
# quick benchmark, the tests. Each part has a limit of its own and the next runs whatever came of it.
#
#   bash scripts/on_gpu.sh             # about five minutes
#   bash scripts/on_gpu.sh benchmark   # one part: benchmark, tests or full (a benchmark of 7 minutes)
#   bash scripts/on_gpu.sh large       # check, launches, graphs, models too large for a quick run, then tests
set -u
cd "$(dirname "$0")/.."
export OUT="${OUT:-runs/gpu}" PYTHONPATH="$PWD/src:$PWD/benchmarks" PYTHONUNBUFFERED=1
export TORCH_THOR_CACHE="$OUT/cache" DEVICE="${DEVICE:-cuda}" EXTRA="${EXTRA:-}"
PYTHON="${PYTHON:-python3}"
mkdir -p "$OUT"

benchmark() { # what is left over, besides OUT, goes to gpu.py
    # shellcheck disable=SC2086
    timeout -k 5 "$1" "$PYTHON" benchmarks/gpu.py --device "$DEVICE" --out "$OUT" "${@:2}" $EXTRA 2>&1 |
        grep --line-buffered -v USDT | tee "$OUT/benchmark.txt"
}

tests() {
    # SIGINT lets pytest tell what has failed so far.
    OMP_NUM_THREADS=1 timeout -s INT -k 15 "$1" "$PYTHON" -m pytest -n "${WORKERS:-12}" --device "$DEVICE" \
        -p no:cacheprovider -p no:benchmark -W default::DeprecationWarning -W default::FutureWarning -vv --tb=short \
        --timeout=60 -rfEs --junitxml="$OUT/pytest.xml" tests --ignore=tests/thor_bench --ignore=tests/integrations \
        >"$OUT/pytest.txt" 2>&1
    echo "pytest ended with $?; per outcome:"
    grep -oE '^\[gw[0-9]+\] \[ *[0-9]+%\] [A-Z]+' "$OUT/pytest.txt" | awk '{print $NF}' | sort | uniq -c
    grep -E '^(FAILED|ERROR)' "$OUT/pytest.txt" | cut -c1-220 | tail -40
    tail -1 "$OUT/pytest.txt"
}

case "${1:-all}" in
benchmark) benchmark 165 --quick ;;
full) benchmark 440 --compiled ;;
tests) tests 150 ;;
large)
    benchmark 225 --quick --seconds 195 --optimizers sgd,adamw,muon,thor,thor-unchecked,scale-free \
        --only check,profile,graph,resnet50-256,vit-b16-128,gpt2-small
    tests 170
    ;;
all)
    benchmark 165 --quick
    tests 150
    ;;
*) echo "unknown part $1: benchmark, full, tests, large or all" >&2; exit 2 ;;
esac
