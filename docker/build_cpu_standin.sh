#!/usr/bin/env bash
# Builds docker/Dockerfile.cpu without a registry, on a Debian 12 made by debootstrap in place of debian:bookworm-slim, and
# runs the doctor and a plan in the image.
#
#   docker/build_cpu_standin.sh FOLDER        root, with buildah and debootstrap; needs 10 GB in FOLDER
#
# NVT_PIP_OPTIONS says where torch's CPU wheel comes from instead of PyTorch's index, NVT_VOLUME mounts a folder for it:
#   NVT_VOLUME=/my/wheels:/wheels:ro NVT_PIP_OPTIONS="--find-links /wheels" docker/build_cpu_standin.sh /tmp/standin
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."
mkdir -p "$folder"

if [ ! -e "$folder/rootfs/etc/os-release" ]; then
    debootstrap --variant=minbase bookworm "$folder/rootfs.new" >"$folder/debootstrap.log"
    mv "$folder/rootfs.new" "$folder/rootfs"
fi

store=(--storage-driver vfs --root "$folder/storage" --runroot "$folder/run")
image() { buildah "${store[@]}" "$@"; }
if ! image inspect --type image standin-base >/dev/null 2>&1; then
    container=$(image from scratch)
    image add --quiet "$container" "$folder/rootfs" /
    image commit --quiet --rm "$container" standin-base
fi

options=(--isolation chroot --pull-never --layers=false --build-arg BASE=localhost/standin-base --tag nvt-cpu)
[ -z "${NVT_VOLUME:-}" ] || options+=(--volume "$NVT_VOLUME")
[ -z "${NVT_PIP_OPTIONS:-}" ] || options+=(--build-arg "PIP_OPTIONS=$NVT_PIP_OPTIONS")
time image bud "${options[@]}" --file docker/Dockerfile.cpu .

container=$(image from --pull-never localhost/nvt-cpu)
trap 'image rm "$container" >/dev/null' EXIT
image run --isolation chroot "$container" -- id
image run --isolation chroot "$container" -- python launcher/run.py doctor run.root=/runs
image run --isolation chroot "$container" -- python launcher/run.py recipe=ssp_full plan=true run.root=/runs | tail -3
image images
