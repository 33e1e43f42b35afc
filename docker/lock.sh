#!/usr/bin/env bash
# Writes the lock files: every package of each image, at one version, with its hashes.
#
#   docker/lock.sh [cpu] [gpu] [nemo] [-- MORE_OPTIONS_OF_UV]       default: all three; needs uv (pip install uv)
#
# Versions already in a lock file are kept; `docker/lock.sh -- --upgrade` takes the newest ones that fit. Where PyTorch's
# CPU index is not reachable, NVT_TORCH_CPU names another source of the CPU wheel, like NVT_TORCH_CPU="--find-links DIR".
set -euo pipefail
cd "$(dirname "$0")/.."

names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do names+=("$1"); shift; done
[ $# -eq 0 ] || shift
[ ${#names[@]} -gt 0 ] || names=(cpu gpu nemo)

resolve() { # OUTPUT, then uv's inputs and options; Debian 12, which the images stand on, has glibc 2.36
    local output=$1
    shift
    uv pip compile --quiet --no-config --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
        --custom-compile-command docker/lock.sh --output-file "$output" "$@"
}

read -ra torch_cpu <<<"${NVT_TORCH_CPU:---torch-backend cpu}"
for name in "${names[@]}"; do
    case $name in
        cpu) resolve docker/requirements-cpu.lock pyproject.toml --extra test "${torch_cpu[@]}" "$@" ;;
        gpu) resolve docker/requirements-gpu.lock pyproject.toml docker/requirements-gpu.txt "$@" ;;
        nemo) resolve docker/requirements-nemo.lock docker/requirements-nemo.txt "$@" ;;
        *) echo "unknown image '$name'; there are: cpu gpu nemo" >&2; exit 2 ;;
    esac
    echo "docker/requirements-$name.lock: $(grep -c '^[a-zA-Z0-9].*==' "docker/requirements-$name.lock") packages"
done
