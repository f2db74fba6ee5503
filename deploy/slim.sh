#!/bin/sh
# Takes out of a virtual environment what no runtime of panfm reads, and the packages that are named besides; called while an
# image is built. What is left, and what for: deploy/IMAGES.md.
# SPDX-License-Identifier: Apache-2.0
set -eu
python=$1/bin/python
packages=$(echo "$1"/lib/python3.*/site-packages)
shift

# Headers, static libraries and sources, against which one compiles. Nothing is compiled where panfm runs.
rm -rf "$packages"/torch/include "$packages"/torch/share
find "$packages"/torch/bin -type f ! -name torch_shm_manager -delete  # that one torch looks for when it is imported
rm -rf "$packages"/numpy/_core/include "$packages"/pyarrow/include "$packages"/pyarrow/src
find "$packages" \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.cpp' \) -delete

# Tests of the libraries themselves.
for library in numpy scipy pandas sklearn matplotlib mpl_toolkits sympy nibabel networkx joblib pyarrow tensorboard; do
    find "$packages/$library" -type d -name tests -prune -exec rm -rf {} +
done

# Parts of Arrow and TensorBoard that talk to servers: panfm reads and writes files.
rm -rf "$packages"/pyarrow/*flight*.so* "$packages"/pyarrow/libarrow_s3* "$packages"/pyarrow/_s3fs*
rm -rf "$packages"/tensorboard_data_server "$packages"/tensorboard/webfiles.zip

for package in "$@"; do
    rm -rf "${packages:?}/$package"
done

# Whatever was taken too much is noticed here, and not at a hospital.
"$python" -c 'import flwr, matplotlib.pyplot, nibabel, opacus, pandas, pyarrow.parquet, scipy.stats, sklearn.linear_model, torch'
"$python" -c 'from torch.utils.tensorboard import SummaryWriter'
