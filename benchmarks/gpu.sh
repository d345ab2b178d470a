#!/usr/bin/env bash
# The figures for one GPU: our policies against pyautoattack on a WRN-34-10, 1,000 images of CIFAR-10.
#
#     benchmarks/gpu.sh CHECKPOINT DATA_DIR [IMAGES]
#
# CHECKPOINT is a robust WRN-34-10 (a training job's model.safetensors, or one made with `dklbench convert`),
# DATA_DIR holds CIFAR-10. Writes benchmarks/results/GPU-DATE.txt with command, hardware and versions.
set -euo pipefail
cd "$(dirname "$0")/.."
checkpoint=${1:?which checkpoint?} data=${2:?which folder holds CIFAR-10?} images=${3:-1000}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
out="benchmarks/results/$(tr ' ' '-' <<<"$gpu")-$(date +%F).txt"
command=(python benchmarks/autoattack.py --device cuda --checkpoint "$checkpoint" --dataset cifar10
  --data-dir "$data" --images "$images")
{
  echo "${command[*]}"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
  python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda, 'cuDNN', torch.backends.cudnn.version())"
  # What the card does in 16 bits at most: the yardstick for the share of it that `fast` reaches.
  python - <<'PY'
import time
import torch

a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
for repeats in (5, 50):
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
print(f"ceiling: {2 * 8192**3 * 50 / (time.perf_counter() - started) / 1e12:.0f} TFLOP/s in float16 products")
PY
  "${command[@]}"
} 2>&1 | tee "$out"
