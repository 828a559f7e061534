#!/usr/bin/env bash
# Trains and attacks the rows of a table, and writes it with its pictures into results/NAME.
#
#   results/measure.sh digits 0 1 2 3 4
#   results/measure.sh mnist 0 1 2
#   results/measure.sh cifar10 0 1
#   results/measure.sh cifar10_2x8 0 1    ResNeXt34 a quarter as wide; cifar10_2x32: as in the papers
#
# The numbers after the name are seeds. What is finished is not done again: not what is in runs/NAME,
# and not what results/NAME/runs keeps of it, all that a table reads. A row is an objective of the
# config, with fields of its own after it: j2/options.method=penalty/model.activation=silu.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
config=experiments/configs/${name%%_*}.py
rows="j0 j1 j2 j2_lip_tanh"
model=""
protocols="pgd"
radii=() # of PGD, beside those of the config
case $name in
  cifar10) # with the ablation of Lip term and tanh
    rows="j0 j1 j2 j2_tanh j2_lip j2_lip_tanh"
    model=",cnn"
    ;;
  cifar10_2x*) # and of relu, of attack and penalty, and of the examples and images that the Lip term sees
    rows="j0 j1 j2 j2_lip j2_tanh j2_lip_tanh j2_lip/options.top_k=0 j2_lip/options.points=attacked"
    for row in j1 j2 j2_lip; do rows+=" $row/options.method=penalty"; done
    for row in j0 j1 j2 j2_lip; do rows+=" $row/model.activation=silu"; done
    for row in j1 j2 j2_lip; do rows+=" $row/options.method=penalty/model.activation=silu"; done
    if [ "$name" = cifar10_2x8 ]; then model=",2x8"; radii=(--radii=l2=0.5,1 --radii=linf=0.0156863); fi
    protocols="pgd autoattack"
    ;;
esac

# One row by one protocol, and what is kept of it. A run that is not here any more is made again with
# all that is kept, so that no row mixes two networks.
measured() { # ROW SEED PROTOCOL
  local parts fields run keep file found
  IFS=/ read -r -a parts <<<"$1"
  fields=("${parts[@]:1}")
  run=runs/$name/${1//\//,}-$2
  keep=results/$name/runs/${1//\//,}-$2
  if compgen -G "$keep/evaluations/$3_*" >/dev/null; then return; fi
  python experiments/train.py --silent --config="$config:${parts[0]}$model" \
    "${fields[@]/#/--config.}" --config.seed="$2" --workdir="$run"
  python experiments/evaluate.py --silent --run="$run" # what is there is read, not made again
  if [ "$3" = autoattack ]; then
    python experiments/evaluate.py --silent --run="$run" --protocol=autoattack --examples=100
  fi
  rm -rf "$keep.part" # of a copy that was killed
  for file in config.json about.json evaluations/*/evaluation.json evaluations/*/distances.npz; do
    for found in "$run"/$file; do
      install -D -m 644 "$found" "$keep.part/${found#"$run/"}"
    done
  done
  rm -rf "$keep"
  mv "$keep.part" "$keep"
}

for protocol in $protocols; do
  kept=()
  for seed in "$@"; do
    for row in $rows; do
      measured "$row" "$seed" "$protocol"
      kept+=("results/$name/runs/${row//\//,}-$seed")
    done
  done
done
for protocol in $protocols; do
  out=results/$name
  if [ "$protocol" != pgd ]; then out+=/$protocol; radii=(); fi
  python experiments/table.py "${kept[@]}" --protocol="$protocol" --out="$out" ${radii[@]+"${radii[@]}"}
done
