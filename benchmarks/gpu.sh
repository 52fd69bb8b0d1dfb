#!/usr/bin/env bash
# What needs a GPU, in eight minutes at most: its tests, speed, a real cohort, a large slide.
# usage: gpu.sh OUT [DATA]
#   OUT   gets tests.log, benchmarks.log, cohort.log, gpu.json and gpu.md (a table for RESULTS.md)
#   DATA  holds her2st_bench/ and embeddings/efficientnet_lite0/; without it there is no cohort
# Wheels in .wheels/ (gpu_wheels.sh) are installed into a temporary folder if anndata is missing.
# Each step has a time limit, and one that fails does not stop the others; the exit status is 1 if
# any failed. In the environment: PYTHON (python3), DEVICE (cuda), LIMIT (480 seconds in all),
# QUICK=1 (tiny sizes: DEVICE=cpu QUICK=1 shows here that everything runs).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
data=${2:+$(cd "$2" && pwd)}
cd "$root"
python=${PYTHON:-python3} device=${DEVICE:-cuda} limit=${LIMIT:-480} quick=${QUICK:-}
threads=$([ -n "$quick" ] && echo 1 || nproc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/site
mkdir -p "$site"
ln -s "$root/cli" "$site/stflow_graph_cli"
export PYTHONPATH=$root:$site OMP_NUM_THREADS=$threads PYTHONUNBUFFERED=1
rm -f "$out"/{tests,benchmarks,cohort}.log "$out"/gpu.{json,md}
failed=()

# step NAME LOG SECONDS COMMAND...
step() {
  local name=$1 log=$out/$2.log seconds=$3 left=$((limit - SECONDS)) began=$SECONDS code
  shift 3
  [ -z "$quick" ] || seconds=$((3 * seconds)) # this machine may have one slow core
  [ "$left" -ge "$seconds" ] || seconds=$left
  if [ "$seconds" -lt 5 ]; then
    echo "$name: no time left"
    failed+=("$name")
    return
  fi
  printf '\n$ %s\n' "$*" >>"$log"
  timeout --kill-after=5 "$seconds" "$@" >>"$log" 2>&1
  code=$?
  echo "$name: $((SECONDS - began)) s, exit status $code" | tee -a "$log"
  [ "$code" -eq 0 ] || failed+=("$name")
}

imports='import anndata, pandas, pydantic, zarr, tomli_w, stflow_graph.api, stflow_graph_cli.main'
if [ -d .wheels ] && ! "$python" -c 'import anndata' 2>/dev/null; then
  wheels=(.wheels/*.whl)
  # the image's own pandas was built beside its numpy; only another major version is replaced
  if "$python" -c 'import pandas; assert pandas.__version__ < "3"' 2>/dev/null; then
    wheels=($(printf '%s\n' "${wheels[@]}" | grep -v '/pandas-'))
  fi
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" \
    "${wheels[@]}" >>"$out/benchmarks.log" 2>&1
  if ! "$python" -c "$imports" >>"$out/benchmarks.log" 2>&1; then
    rm -rf "$site"/pandas "$site"/pandas-*
  fi
fi
step imports benchmarks 60 "$python" -c "$imports"

# a foreign image's versions may warn of what ours do not
step "GPU tests" tests 150 env OMP_NUM_THREADS=2 "$python" -m pytest -q -m gpu -W default \
  -p no:cacheprovider $(grep -rl --include='*.py' 'mark\.gpu\|on_gpu' tests)

sizes=(10000 100000) one=(10000) spots=100000 million=1000000 small=()
if [ -n "$quick" ]; then
  sizes=(60 90) one=(60) spots=500 million=2000 small=(--quick)
fi
common=(--device "$device" --threads "$threads")
step speed benchmarks 120 "$python" benchmarks/speed.py "${common[@]}" "${small[@]}" \
  --sizes "${sizes[@]}" --max-published 10000 --max-training 100000 --out "$work/speed"
ours=(--denoisers "graph, default" --sizes "${sizes[@]}" --max-training 100000 --repeats 3)
for precision in tf32 bf16; do
  step "$precision" benchmarks 40 "$python" benchmarks/speed.py "${common[@]}" "${small[@]}" \
    "${ours[@]}" --precision "$precision" --out "$work/$precision"
done
step layer benchmarks 60 "$python" benchmarks/layer.py "${common[@]}" "${small[@]}" \
  --spots "$spots" --out "$work/layer"

if [ -n "$data" ]; then
  bench=$data/her2st_bench embeddings=$data/embeddings/efficientnet_lite0
  short=()
  [ -z "$quick" ] || short=(--members 1 --epochs 1)
  stflow=("$python" -m stflow_graph_cli)
  step train cohort 120 "${stflow[@]}" train --source-dataroot "$bench" --folds 0 \
    --embed-dataroot "$embeddings" --gene-list var_50genes_fold0.json --allow-patient-overlap \
    --device "$device" "${short[@]}" --out "$work/run"
  slide=$(sed -n '2s/,.*//p' "$bench/splits/test_0.csv")
  for where in "$device" cpu; do
    # on a CPU alone both are the same
    folder=$work/cohort/$([ "$where" = cpu ] && echo cpu || echo gpu)
    [ ! -d "$folder" ] || folder=$work/cohort/again
    step "sample on $where" cohort 40 "${stflow[@]}" sample "$work/run" "$embeddings/$slide.h5" \
      --device "$where" --n-samples 16 --out "$folder"
    step "eval of $where" cohort 40 "${stflow[@]}" eval "$folder/$slide.h5ad" \
      --truth "$bench/adata" --out "$folder/eval"
  done
fi

free=$(df --output=avail -B1G "$work" | tail -n 1)
if [ "$free" -ge 8 ]; then
  step memory benchmarks 120 "$python" benchmarks/memory.py "${common[@]}" --sizes \
    --streamed "$million" --out "$work/memory"
  rm -f "$work"/memory/*.h5
else
  echo "memory: $free GB free, 8 are needed"
  failed+=(memory)
fi
step "global attention" benchmarks 30 "$python" benchmarks/global_cost.py "${common[@]}" \
  "${small[@]}" --out "$work/global_cost"
step embedding benchmarks 45 "$python" benchmarks/embedding.py "${common[@]}" "${small[@]}" \
  --out "$work/embedding"
compiled=("$python" benchmarks/speed.py "${common[@]}" "${small[@]}" --compile --repeats 3
  --sizes "${one[@]}" --denoisers "graph, in every step" "graph, default")
step compiled benchmarks 120 "${compiled[@]}" --no-training --out "$work/compiled"
step "compiled training" benchmarks 150 "${compiled[@]}" --out "$work/compiled_training"

"$python" benchmarks/gpu_summary.py "$work" --device "$device" --out "$out" || failed+=(summary)
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}" | tee -a "$out/gpu.md"
  exit 1
fi
