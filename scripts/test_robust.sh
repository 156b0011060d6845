#!/usr/bin/env bash
# The suite with other threads, processors and orders, and on a busy machine. What is green in
# "make test" and red here rests on rounding, on a processor, on time or on the order of tests.
#   test_robust.sh PYTHON [arguments of pytest ...]       SEED=n repeats an order
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
seed=${SEED:-$RANDOM}
failed=()

suite() { # name, settings ..., then "--" and pytest's arguments
  local name=$1 settings=() workers=auto
  shift
  # Threads of two workers that wait for each other on one core take minutes for what takes seconds.
  [[ $1 == OMP_NUM_THREADS=2 ]] && workers=$((($(nproc) + 1) / 2))
  while [[ $1 != -- ]]; do settings+=("$1"); shift; done
  shift
  printf '\n=== %s, order %s (%(%H:%M:%S)T)\n' "$name" "$seed" -1
  env OMP_NUM_THREADS=1 "${settings[@]}" "$python" -m pytest -n "$workers" \
    --random-order --random-order-seed="$seed" "$@" || failed+=("$name")
  seed=$((seed + 1))
}

suite "one thread" -- "$@"
suite "two threads" OMP_NUM_THREADS=2 -- "$@"
suite "no vector instructions" ATEN_CPU_CAPABILITY=default -- "$@"
suite "AVX2" ATEN_CPU_CAPABILITY=avx2 -- "$@"

busy=()
for _ in $(seq "$(nproc)"); do
  while :; do :; done &
  busy+=($!)
done
trap 'kill "${busy[@]}"' EXIT
suite "a busy loop on every core" -- "$@"

if ((${#failed[@]})); then
  printf '\nfailed: %s\n' "${failed[@]}"
  exit 1
fi
echo "green each time"
