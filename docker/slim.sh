#!/bin/sh
# Removes from the environment at /opt/venv what nothing imports: pip, libraries' own tests, C++ headers.
set -eu
pip uninstall --quiet --yes pip setuptools
cd /opt/venv/lib/python3*/site-packages
rm -rf torch/test torch/include pyarrow/include
find torch/bin -type f ! -name torch_shm_manager -delete
find . -type d -name tests -prune -exec rm -rf {} +
