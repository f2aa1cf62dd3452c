#!/bin/bash
# Builds an image without a Docker engine, with buildah, and tries it as a user without an entry in /etc/passwd:
#   docker/build.sh [cpu|cuda]          # needs root, buildah and debootstrap; no registry of images
# WORK=FOLDER keeps the images there, on a disk with 20 GiB free for cpu, 60 GiB for cuda; else a temporary folder is
# used and removed. WHEELS=FOLDER takes torch from wheels there. SSL_CERT_FILE names the certificates of a proxy.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-cpu}
if [[ -z ${WORK:-} ]]; then
  WORK=$(mktemp -d)
  trap 'rm -rf "$WORK"' EXIT
fi
mkdir -p "$WORK" && WORK=$(cd "$WORK" && pwd)
base=sae-sweep-base:bookworm
image=sae-sweep:$target

buildah() { command buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs "$@"; }

make_base() {
  debootstrap --variant=minbase bookworm "$WORK/base" > "$WORK/debootstrap.log"
  cat > "$WORK/base/etc/apt/sources.list" <<-'SOURCES'
	deb http://deb.debian.org/debian bookworm main
	deb http://deb.debian.org/debian bookworm-updates main
	deb http://deb.debian.org/debian-security bookworm-security main
	SOURCES
  rm -rf "$WORK"/base/var/lib/apt/lists/* "$WORK"/base/var/cache/apt/* "$WORK"/base/usr/share/{doc,man,locale}/*
  local container
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$WORK/base" / > /dev/null
  buildah commit --quiet --rm "$container" "$base" > /dev/null
  rm -rf "$WORK/base"
}

build_image() {
  local options=(--build-arg "BASE=localhost/$base")
  if [[ -n ${WHEELS:-} ]]; then
    options+=(--volume "$WHEELS:/wheels:ro" --build-arg "TORCH_${target^^}=--find-links /wheels")
  fi
  if [[ -n ${SSL_CERT_FILE:-} ]]; then
    printf '[global]\ncert = /ca.pem\n' > "$WORK/pip.conf"
    options+=(--volume "$(realpath "$SSL_CERT_FILE"):/ca.pem:ro" --volume "$WORK/pip.conf:/etc/pip.conf:ro")
  fi
  buildah build --isolation chroot --format docker --layers --file docker/Dockerfile \
    --target "$target" --tag "$image" "${options[@]}" .
}

# Runs the command in the image as a user whom its /etc/passwd lacks
run_image() {
  buildah run --isolation chroot --user 4321:4321 --workingdir /work \
    --volume "$WORK/home:/home/sae" --volume "$WORK/multirun:/work/multirun" "$container" -- "$@"
}

try_image() {
  mkdir -p "$WORK/home" "$WORK/multirun" && chown 4321:4321 "$WORK/home" "$WORK/multirun"
  run_image sae-sweep experiment=quickstart tokens=20_000 evaluation.tokens=4_096 sweep=in-image
  run_image sae-sweep task=status sweep=in-image
  test "$(find "$WORK/multirun/in-image" -name metrics.json | wc -l)" = 8
  echo "$image trains the quickstart as a user without a name"
}

report_size() {
  local root
  root=$(buildah mount "$container")
  echo "$image: $(du -sm --apparent-size "$root" | cut -f1) MB of files"
  rm -f "$WORK/sae-sweep-$target.tar"
  buildah push --quiet "localhost/$image" "docker-archive:$WORK/sae-sweep-$target.tar:$image"
  gzip --fast --stdout "$WORK/sae-sweep-$target.tar" | wc -c | awk '{printf "compressed: %d MB\n", $1 / 1e6}'
}

buildah inspect --type image "$base" > /dev/null 2>&1 || make_base
build_image
container=$(buildah from --pull-never "localhost/$image")
try_image
report_size
buildah rm "$container" > /dev/null
