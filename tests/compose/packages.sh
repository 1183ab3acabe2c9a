#!/bin/sh
# Install what the check of the compose stack needs, as far as it is absent; as root.
set -eu
missing=
for each in podman runc debootstrap docker-compose catatonit; do
    command -v "$each" >/dev/null 2>&1 || missing="$missing $each"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "compose-check: missing:$missing; install these packages, then try again" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null
