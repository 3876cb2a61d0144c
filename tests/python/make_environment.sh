#!/usr/bin/env bash
# The environment of the package's tests: make_environment.sh BUILD FOLDER
set -euo pipefail
source=$(dirname "$0")/../..
wheel=$("$source"/scripts/wheel.sh "$1" "$1/dist")
"$source"/scripts/python_env.sh "$wheel" "$2"
