#!/usr/bin/env bash
# Trains networks that are 1-Lipschitz by construction on digits, and two that are trained to be
# robust, certifies and attacks them, and writes results/certified.
#
#   results/certified.sh 0 1 2
#
# The numbers are seeds: the first trains every construction, the others those that are compared.
# What is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
config=experiments/configs/digits.py
best="sandwich cayley"
first=$1

train() { # NAME SEED ROW FLAGS...
  local run="runs/certified/$1-$2" row=$3 seed=$2
  shift 3
  [ -e "$run/trained" ] && return
  python experiments/train.py --silent --config="$config:$row" --config.seed="$seed" \
    --workdir="$run" "$@" >/dev/null
  touch "$run/trained"
}

for layer in sandwich cayley bjorck bro aol sll cpl spectral; do
  train "$layer" "$first" j0,lipschitz_cnn --config.model.settings.layer="$layer"
done
for row in j2_lip pgd_at; do
  train "$row" "$first" "$row" --config.model.settings.channels="(16,32)"
done
for seed in "$@"; do
  for layer in $best; do
    options=(--config.model.settings.layer="$layer")
    train "$layer" "$seed" j0,lipschitz_cnn "${options[@]}"
    train "$layer-hkr" "$seed" j0,lipschitz_cnn "${options[@]}" \
      --config.loss="hkr(alpha=0.9,margin=1.4)"
    train "$layer-emma" "$seed" j0,lipschitz_cnn "${options[@]}" --config.loss="emma(eps=0.5)"
    train "$layer-annealing" "$seed" j0,lipschitz_cnn "${options[@]}" \
      --config.loss="logit_annealing(temperature=0.1,offset=0.7,eps=0)"
    train "$layer-gloro" "$seed" j0,lipschitz_cnn "${options[@]}" --config.loss="gloro(eps=0.5)"
  done
done
python results/certified.py runs/certified results/certified
