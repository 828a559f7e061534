#!/usr/bin/env bash
# Trains SGD and the variants of Deep Relaxation on MNIST, a gradient a step: three learning rates
# with seed 0, the best by validation with seeds 0 to 4. Writes results/relaxation.
#
#   results/relaxation.sh mlp lenet
#
# What is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."

compare() { # NETWORK OPTIMIZER RATES
  local row=$1,$2 out=runs/relaxation/$1/$2 rate
  local sweep=(python experiments/sweep.py --silent --config="experiments/configs/relaxation.py:$row")
  "${sweep[@]}" --sweep="train.learning_rate=$3" --workdir="$out/rates"
  rate=$(sed -n 's/^Best.*learning_rate=\(.*\)\.$/\1/p' "$out/rates/sweep.md")
  "${sweep[@]}" --config.train.learning_rate="$rate" --sweep=seed=0:5 --workdir="$out/seeds"
}

for network in "$@"; do
  for optimizer in sgd entropy hj; do
    compare "$network" $optimizer 0.03,0.1,0.3
  done
  compare "$network" heat 0.1,0.3,1.0 # a step is the mean of 20 gradients
done
compare mlp replicas 0.03,0.1,0.3
python benchmarks/relaxation.py --runs=runs/relaxation --out=results/relaxation
