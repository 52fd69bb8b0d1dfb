#!/usr/bin/env bash
# The whole main job on simulated slides: simulate, embed, train, sample, eval.
# usage: demo.sh STFLOW_GRAPH_COMMAND FOLDER
set -euo pipefail
stflow=$1
out=$2

say() { printf '\n\033[1m$ stflow-graph %s\033[0m\n' "$*"; "$stflow" "$@"; }

# a second run draws the same bytes again, and the later stages skip what is complete
say simulate "$out/cohort" --slides 6 --spots 400 --seed 0 --overwrite
say embed --source-dataroot "$out/cohort" --embed-dataroot "$out/embeddings"
say train --source-dataroot "$out/cohort" --embed-dataroot "$out/embeddings" --out "$out/run"
say sample "$out/run" "$out/embeddings/cohort/efficientnet_lite0/fp32" --out "$out/run/predictions" \
  --n-samples 16
say eval "$out"/run/predictions/*.h5ad --truth "$out/cohort/adata" --out "$out/run/eval" \
  --baselines --source-dataroot "$out/cohort" --embed-dataroot "$out/embeddings"

printf '\nopen %s\n' "$out/run/eval/report.html"
