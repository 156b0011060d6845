#!/usr/bin/env bash
# Compares THOR with SGD and AdamW on digits: installs what that needs and no more, says what comes.
# Usage: scripts/demo.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} venv=.venv-demo out=runs/demo

if [ -x .venv/bin/thor ]; then # made by "make setup"
  thor=.venv/bin/thor
else
  thor=$venv/bin/thor
fi
if [ ! -x "$thor" ]; then
  echo "1 of 2: installs the library and its bench in $venv; your own environment stays as it is."
  "$python" -m venv "$venv"
  there=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null || true)
  if [ -n "$there" ]; then
    echo "       torch is there already ($there) and is used: about 0.6 GB and a minute are left."
    echo "$there" > "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/torch-that-is-there.pth"
  else
    echo "       torch comes too: on Linux that is its build for GPUs, several GB and minutes."
    echo "       A smaller one that you install first is used; pytorch.org says how."
  fi
  "$venv/bin/python" -m pip install --disable-pip-version-check --editable '.[bench]'
fi

echo "2 of 2: trains digits with 3 optimizers and 3 seeds each, 1,797 images on the CPU: about half a minute."
"$thor" compare digits --optimizers thor,sgd,adamw --seeds 3 --evals-per-epoch 4 --out "$out"
