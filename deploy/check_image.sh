#!/bin/bash
# Checks an image without Docker: runs the Dockerfile's own steps in a fresh Debian root, and then what comes out of it
# as the image would run it: as the unprivileged user, without capabilities, on a file system that cannot be written
# to but for /data and /tmp.
#
#   sudo deploy/check_image.sh service        # about 600 MB of downloads and disk
#   sudo deploy/check_image.sh worker         # about 8 GB: torch with the CUDA libraries
#
# Needs root, debootstrap, util-linux, iproute2 and curl, and a network: Debian's mirror and PyPI. IMAGE_ROOT is where the root is
# made (default: a new folder in /var/tmp, removed at the end). PIP_CERT: certificates of a proxy between here and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
target=${1:-service}
case $target in service | worker) ;; *) echo "error: say service or worker" >&2; exit 1 ;; esac
[ "$(id -u)" = 0 ] || { echo "error: run it as root: sudo deploy/check_image.sh $target" >&2; exit 1; }
for program in debootstrap unshare setpriv ip curl; do
  command -v $program >/dev/null || { echo "error: $program is missing: apt-get install debootstrap util-linux iproute2 curl" >&2; exit 1; }
done

keep=${IMAGE_ROOT:+yes}
root=${IMAGE_ROOT:-$(mktemp -d /var/tmp/dklbench-image.XXXXXX)}
if [ -z "${PHASE:-}" ]; then # what is mounted and started ends with its phase, however that ends
  status=0
  PHASE=build IMAGE_ROOT=$root unshare --mount --pid --fork --kill-child --mount-proc "$0" "$target" &&
    PHASE=run IMAGE_ROOT=$root unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$target" || status=$?
  [ -n "$keep" ] || rm -rf "$root"
  exit $status
fi

path=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
inside() { env -i PATH=$path LANG=C.UTF-8 chroot "$root" "$@"; }

if [ "$PHASE" = build ]; then
  if [ ! -e "$root/usr/bin/apt-get" ]; then
    echo "--- Debian with Python, as the base image has it"
    release=$(sed -n 's/^ARG PYTHON=python:.*-slim-\([a-z]*\)$/\1/p' Dockerfile)
    debootstrap --variant=minbase --include=python3-venv,ca-certificates "$release" "$root" http://deb.debian.org/debian >/dev/null
  fi
  wanted=$(sed -n 's/^ARG PYTHON=python:\([0-9.]*\)-.*/\1/p' Dockerfile)
  found=$(inside python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$found" = "$wanted" ] || { echo "error: Debian has Python $found, the Dockerfile wants $wanted" >&2; exit 1; }
  inside python3 -m venv /usr/local # where the base image has python and pip, too

  echo "--- the steps of build, base and $target"
  mkdir -p "$root/context"
  mount --bind "$repository" "$root/context"
  mount -o remount,bind,ro "$root/context"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  python3 deploy/dockerfile_steps.py build base "$target" >"$root/steps.sh"
  if [ -n "${PIP_CERT:-}" ]; then cp "$PIP_CERT" "$root/certificates.pem"; fi
  inside env ${PIP_CERT:+PIP_CERT=/certificates.pem} sh /steps.sh
  exit
fi

echo "--- run as the image is run"
ip link set lo up # all the network there is
exports=$(grep '^export ' "$root/steps.sh")
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs "$root/data"
as_image() {
  env -i PATH=$path LANG=C.UTF-8 DKLBENCH_DEVICE=cpu "${SETTINGS[@]}" chroot "$root" setpriv --reuid 10001 --regid 10001 \
    --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs sh -c "$exports
cd /tmp
exec \"\$@\"" sh "$@"
}
SETTINGS=(DKLBENCH_MIN_FREE_BYTES=0)
if as_image sh -c 'echo x > /usr/local/x' 2>/dev/null; then echo "error: the root can be written to" >&2; exit 1; fi
read -ra command < <(sed -n "s/^# CMD //p" "$root/steps.sh" | tail -1)

case $target in
  service)
    as_image dklbench migrate
    key=$(as_image dklbench keys create check --scope admin | grep -oE -m 1 'dkl_[A-Za-z0-9_-]+')
    as_image "${command[@]}" &
    trap 'kill $!' EXIT
    url=http://127.0.0.1:8000
    for _ in $(seq 60); do curl -sf $url/livez >/dev/null && break; sleep 0.5; done
    for path_ in /livez /readyz; do echo "GET $path_: $(curl -sf $url$path_)"; done
    job=$(curl -sf $url/api/v1/jobs -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
      -d '{"name": "ikl-at-digits"}')
    echo "POST /api/v1/jobs: $job" | cut -c1-200
    grep -q '"status":"queued"' <<<"$job"
    [[ $(curl -sf $url/) == *"<html"* ]] # the leaderboard
    if as_image python -c 'import torch' 2>/dev/null; then echo "error: torch is in the service's image" >&2; exit 1; fi
    ;;
  worker)
    as_image python -c 'import torch, workers.app; print("torch", torch.__version__, torch.version.cuda)'
    as_image dklbench run natural-digits epochs=2 # trains, with torch and its data set from the image
    as_image celery -A workers.app --version
    ;;
esac
echo "--- $target: all is well"
