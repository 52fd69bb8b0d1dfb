#!/usr/bin/env bash
# The main job on real slides in HEST-bench layout: both denoisers, then one table.
# usage: main_job.sh ROOT EMBEDDINGS OUT [FOLD ...]    (folds 0 and 2 unless given)
# SEED and STFLOW (the command) may be set in the environment.
set -euo pipefail
root=$1
embeddings=$2
out=$3
shift 3
folds=(0 2)
[ $# -eq 0 ] || folds=("$@")
stflow=${STFLOW:-stflow-graph}
seed=${SEED:-0}

say() { printf '\n$ stflow-graph %s\n' "$*"; "$stflow" "$@"; }

predictions=()
for denoiser in graph transformer; do
  run=$out/$denoiser-seed$seed
  say train --source-dataroot "$root" --embed-dataroot "$embeddings" --denoiser "$denoiser" \
    --folds "${folds[@]}" --seed "$seed" --out "$run"
  for fold in "${folds[@]}"; do
    slides=$(tail -n +2 "$root/splits/test_$fold.csv" | cut -d, -f1)
    for slide in $slides; do
      file=$(find "$embeddings" -name "$slide.h5" | sort | head -n 1)
      say sample "$run" "$file" --out "$run/predictions" --n-samples 8 --seed "$seed"
      predictions+=("$run/predictions/$slide.h5ad")
    done
  done
done
say eval "${predictions[@]}" --truth "$root/adata" --out "$out/eval-seed$seed" \
    --baselines --source-dataroot "$root" --embed-dataroot "$embeddings"
