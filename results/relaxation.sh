#!/usr/bin/env bash
# Trains SGD and the variants of Deep Relaxation on MNIST, a gradient a step: on the MLP three
# learning rates with seed 0, then on both networks the best by validation with seeds 0 to 4.
# Writes results/relaxation. What is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=runs/relaxation

sweep() { # NETWORK OPTIMIZER FOLDER FLAG ...
  python experiments/sweep.py --silent --config="experiments/configs/relaxation.py:$1,$2" \
    --workdir="$runs/$1/$2/$3" "${@:4}"
}

least() { # SWEEP.JSON: the value of its axis with the least error under the validation attack
  python -c 'if True:
    import json, sys
    points = json.load(open(sys.argv[1]))["points"]
    error = lambda name: points[name].get("validation_error_pgd", float("inf"))
    print(min(points, key=error).split("=")[1])' "$1"
}

for optimizer in sgd entropy hj heat replicas; do
  rates=0.03,0.1,0.3
  if [ $optimizer = heat ]; then
    rates=0.1,0.3,1.0 # its step is the mean of 20 gradients
  fi
  sweep mlp $optimizer rates --sweep="train.learning_rate=$rates"
  best=$(least "$runs/mlp/$optimizer/rates/sweep.json")
  for network in mlp lenet; do
    if [ $network,$optimizer != lenet,replicas ]; then
      sweep $network $optimizer seeds --config.train.learning_rate="$best" --sweep=seed=0:5
    fi
  done
done
python benchmarks/relaxation.py --runs=$runs --out=results/relaxation
