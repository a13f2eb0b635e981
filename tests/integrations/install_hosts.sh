#!/usr/bin/env bash
# Installs the host packages that tests/integrations runs against, beside the torch that is there.
# Most hosts ask for torch or torchvision, whose resolution would replace a CPU build by gigabytes
# of CUDA wheels: those come without their dependencies, the rest as usual.
set -euo pipefail

python -m pip install --quiet \
  transformers==5.24.0 scikit-learn==1.9.1 safetensors regex ftfy pyyaml \
  pandas==3.1.1 braceexpand==0.1.7 datasets==5.2.0

python -m pip install --quiet --no-deps \
  torchvision==0.28.0 \
  open_clip_torch==3.3.0 timm==1.0.31 \
  sentence-transformers==6.2.0 \
  pytorch-metric-learning==2.9.0 \
  lightly==1.6.0 lightly-utils==0.0.2 \
  accelerate==1.15.0 \
  webdataset==1.0.2 \
  pylate==1.6.0 \
  pytorch-lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0

python - <<'PY'
import torch

print(f"hosts installed beside torch {torch.__version__}")
PY
