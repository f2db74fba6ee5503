#!/usr/bin/env bash
# Makes the nginx image of the container tests from Debian's own package, as root on Debian, where no image registry can be reached.
# Elsewhere any nginx image will do: name it in PANFM_TEST_NGINX. Nothing is done when the image is there.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
image=localhost/panfm-test-nginx:bookworm
podman image exists "$image" && exit 0
mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
[ -n "$mirror" ] || mirror=$(awk '$1=="deb" && $2 ~ /^http/ {print $2; exit}' /etc/apt/sources.list)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=nginx-light,ca-certificates bookworm "$root" "$mirror" >/dev/null
tar -C "$root" -c . | podman import - "$image" >/dev/null
