#!/usr/bin/env bash
# What one GPU is to say, into $OUT (runs/gpu without it). torch is all that the benchmark needs.
#
#   bash scripts/gpu.sh benchmark  # under 7 minutes; more words go to benchmarks/gpu.py
#   bash scripts/gpu.sh tests      # under 4 minutes; more words go to pytest
#   bash scripts/gpu.sh carry 3.12 # on a machine with a package registry: into .carried, what the
#                                  # tests need beyond torch, for that Python
set -u
cd "$(dirname "$0")/.."
export OUT="${OUT:-runs/gpu}" PYTHONPATH="$PWD/.carried:$PWD/src" PYTHONUNBUFFERED=1
TORCH_THOR_CACHE=$(mktemp -d)
export TORCH_THOR_CACHE
PYTHON="${PYTHON:-python3}" DEVICE="${DEVICE:-cuda}"
mkdir -p "$OUT"

benchmark() {
    timeout -k 5 415 "$PYTHON" benchmarks/gpu.py --device "$DEVICE" --out "$OUT" "$@" 2>&1 |
        grep --line-buffered -v USDT | tee "$OUT/benchmark.txt"
}

tests() {
    # SIGINT lets pytest tell what has failed so far.
    OMP_NUM_THREADS=1 timeout -s INT -k 15 240 "$PYTHON" -m pytest -n "${WORKERS:-12}" \
        --device "$DEVICE" -p no:cacheprovider -p no:benchmark -vv --tb=short --timeout=60 -rfEs \
        -W default::DeprecationWarning -W default::FutureWarning --junitxml="$OUT/pytest.xml" \
        "$@" >"$OUT/pytest.txt" 2>&1
    echo "pytest ended with $?; per outcome:"
    grep -oE '^\[gw[0-9]+\] \[ *[0-9]+%\] [A-Z]+' "$OUT/pytest.txt" | awk '{print $NF}' | sort | uniq -c
    grep -E '^(FAILED|ERROR)' "$OUT/pytest.txt" | cut -c1-220 | tail -60
    tail -1 "$OUT/pytest.txt"
}

carry() {
    rm -rf .carried
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --target .carried \
        --python-version "${1:-3.12}" --only-binary=:all: pytest hypothesis pytest-timeout pytest-xdist
    du -sh .carried
}

part="${1:-}"
case "$part" in
benchmark | tests | carry) "$part" "${@:2}" ;;
*) echo "which part? benchmark, tests or carry; the first lines of this script say more" >&2; exit 2 ;;
esac
