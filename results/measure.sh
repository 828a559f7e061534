#!/usr/bin/env bash
# Trains and attacks the rows of a table, and writes it with its pictures into results/NAME.
#
#   results/measure.sh digits 0 1 2 3 4
#   results/measure.sh mnist 0 1 2
#   results/measure.sh cifar10 0 1
#
# The numbers after the name are seeds. What is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
rows="j0 j1 j2 j2_lip_tanh"
model=""
if [ "$name" = cifar10 ]; then
  rows="j0 j1 j2 j2_tanh j2_lip j2_lip_tanh" # with the ablation of Lip term and tanh
  model=",cnn"
fi
runs=()
for seed in "$@"; do
  for row in $rows; do
    run="runs/$name/$row-$seed"
    python experiments/train.py --silent --config="experiments/configs/$name.py:$row$model" \
      --config.seed="$seed" --workdir="$run"
    python experiments/evaluate.py --silent --run="$run" # what is there is read, not made again
    runs+=("$run")
  done
done
python experiments/table.py "${runs[@]}" --out="results/$name"
