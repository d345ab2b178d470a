#!/usr/bin/env bash
# The figures for one NVIDIA GPU, each set in one command:
#
#     benchmarks/gpu.sh training DATA_DIR
#     benchmarks/gpu.sh autoattack CHECKPOINT DATA_DIR [IMAGES]
#     benchmarks/gpu.sh distillation DATA_DIR
#     benchmarks/gpu.sh recipes             # what `training` trains and judges by, as words for python -m dkl
#     benchmarks/gpu.sh distillation-recipes                                      # the same of `distillation`
#
# training: an update of IKL-AT on a WRN-34-10 against the authors' step, in float32, bfloat16 and compiled; then
# PreActResNet-18 on CIFAR-10, 30 epochs each of TRADES, IKL-AT and GKL-AT at equal budget, and AutoAttack on 1,000
# test images for each. A finished part is not repeated: after an interruption, give the same command again.
# autoattack: our policies against pyautoattack on CHECKPOINT, a robust WRN-34-10 (a training job's
# model.safetensors, or one made with `dklbench convert`).
#
# distillation: seconds per iteration of all objectives; then the teachers resnet32x4 and resnet56 on CIFAR-100 by
# our own recipes, and from them resnet8x4 and resnet20 by KD, DKD, IKL-KD and GKL-KD, 240 epochs each, as published.
# ABREAST of them (2) run at once; students of one teacher share its logits, 5 GB per teacher that are kept in
# DATA_DIR/teacher-logits, which may be deleted afterwards.
#
# DATA_DIR holds CIFAR-10, for distillation CIFAR-100. Results, with command, hardware and versions:
# benchmarks/results/GPU-WHAT-DATE.txt.
# From the environment, for trying it out: DEVICE (cuda), IMAGES (1000), PARTS (runs/gpu, where finished parts lie),
# CHANGES and STEPS (more words for the trainings and for train_step.py or distill_step.py).
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} IMAGES=${IMAGES:-1000} PARTS=${PARTS:-runs/gpu}
PYTHON=${PYTHON:-python}
read -ra CHANGES <<<"${CHANGES:-}"
read -ra LESSON_STEPS <<<"${STEPS:---rounds 200}"
read -ra STEPS <<<"${STEPS:---model wrn-34-10 --batch 128 --compile default}"

# --- what is trained ----------------------------------------------------------------------------------------

# One recipe and one budget; only the objective differs. AWP starts after a twentieth of the epochs, as in 200.
RECIPE=ikl-at-cifar10-preact-resnet-18
BUDGET=(epochs=30 awp.first_epoch=2 precision=bfloat16 compile=default "${CHANGES[@]}")
declare -A OBJECTIVES=(
  [trades]='objective={"kind":"trades","beta":6}'
  [ikl-at]='objective={"kind":"ikl","wmse_weight":20,"ce_weight":4,"prior_temperature":4}'
  [gkl-at]='objective={"kind":"gkl","wmse_weight":20,"ce_weight":4,"prior_temperature":4,"gamma":0.2}'
)
METHODS=(trades ikl-at gkl-at)
JUDGE=(autoattack-cifar10-linf "images=$IMAGES")

recipes() {
  for method in "${METHODS[@]}"; do echo "$RECIPE ${BUDGET[*]} ${OBJECTIVES[$method]}"; done
  echo "${JUDGE[*]}"
}

# --- what is distilled --------------------------------------------------------------------------------------

PAIRS=(resnet32x4-resnet8x4 resnet56-resnet20)
LESSONS=(kd dkd ikl-kd gkl-kd)
ABREAST=${ABREAST:-2}

# teaching PAIR, learning LESSON PAIR: words for python -m dkl.
teaching() { echo "natural-cifar100-${1%%-*} ${CHANGES[*]}"; }
learning() { echo "$1-cifar100-$2 keep_teacher=true ${CHANGES[*]}"; }

distillation-recipes() {
  for pair in "${PAIRS[@]}"; do
    teaching "$pair"
    for lesson in "${LESSONS[@]}"; do learning "$lesson" "$pair"; done
  done
}

# --- how it is run ------------------------------------------------------------------------------------------

# part NAME COMMAND...: the command and what it prints, in $PARTS/NAME.txt, once.
part() {
  local file=$PARTS/$1.txt
  shift
  if [[ -e $file ]]; then
    echo "$file is there already"
    return
  fi
  printf '%q ' "$@" | tee "$file.begun"
  echo | tee -a "$file.begun"
  "$@" | tee -a "$file.begun"
  mv "$file.begun" "$file"
}

# dkl WORDS...: python -m dkl, without an event for every batch.
dkl() { "$PYTHON" -m dkl "$@" --device "$DEVICE" | grep -v '"kind":"progress"'; }

machine() {
  if [[ $DEVICE == cpu ]]; then uname -m; else
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
  fi
  "$PYTHON" - <<'PY'
import platform
from importlib.metadata import version
import torch
print("Python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda, end=" ")
print("cuDNN", torch.backends.cudnn.version(), "dkl-bench", version("dkl-bench"))
PY
  echo "commit $(git describe --always --dirty 2>/dev/null || echo unknown), $(date +%F)"
}

# The name of the results' file.
results() {
  local device=cpu
  if [[ $DEVICE != cpu ]]; then device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' ' '-'); fi
  echo "benchmarks/results/$device-$1-$(date +%F).txt"
}

# A line per method, from the last events of its training and its evaluation.
table() {
  "$PYTHON" - "$PARTS" "${METHODS[@]}" <<'PY'
import json
import sys
from pathlib import Path

folder, methods = Path(sys.argv[1]), sys.argv[2:]


def result(name):
    return json.loads((folder / f"{name}.txt").read_text().splitlines()[-1])["result"]


print(f"{'method':8} {'clean':>8} {'AutoAttack':>11} {'images':>7} {'hours of training':>18} {'hours of attack':>16}")
for method in methods:
    trained, judged = result(f"{method}-training"), result(f"{method}-autoattack")
    clean, robust = judged["clean_accuracy"], judged["robust_accuracy"]
    hours = [part["seconds"] / 3600 for part in (trained, judged)]
    print(f"{method:8} {clean:8.2%} {robust:11.2%} {judged['images']:7} {hours[0]:18.2f} {hours[1]:16.2f}")
PY
}

training() {
  local data=${1:?which folder holds CIFAR-10?} out command="benchmarks/gpu.sh training $1"
  out=${RESULTS:-$(results training)}
  mkdir -p "$PARTS"
  part steps "$PYTHON" benchmarks/train_step.py --device "$DEVICE" "${STEPS[@]}"
  for method in "${METHODS[@]}"; do
    local work=$PARTS/$method
    part "$method-training" dkl "$RECIPE" "${BUDGET[@]}" "${OBJECTIVES[$method]}" \
      --workdir "$work" --data-dir "$data"
    part "$method-autoattack" dkl "${JUDGE[@]}" --checkpoint "$work/model.safetensors" \
      --workdir "$work-autoattack" --data-dir "$data"
  done
  {
    echo "$command"
    machine
    echo
    cat "$PARTS/steps.txt"
    echo
    table
    for method in "${METHODS[@]}"; do
      echo
      head -1 "$PARTS/$method-training.txt"
      grep '"kind":"epoch"' "$PARTS/$method-training.txt"
      head -1 "$PARTS/$method-autoattack.txt"
      tail -1 "$PARTS/$method-autoattack.txt"
    done
  } >"$out"
  echo "written to $out"
}

# in_turns COMMAND...: each line of the input as more words for the command, ABREAST at a time.
in_turns() {
  local line failed=0
  while read -r line; do
    while (($(jobs -rp | wc -l) >= ABREAST)); do wait -n || failed=1; done
    # shellcheck disable=SC2086
    "$@" $line </dev/null &
  done
  while [[ -n $(jobs -rp) ]]; do wait -n || failed=1; done
  return $failed
}

# taught DATA_DIR PAIR; learnt DATA_DIR LESSON PAIR
taught() {
  local words teacher=${2%%-*}
  read -ra words <<<"$(teaching "$2")"
  part "$teacher" dkl "${words[@]}" --workdir "$PARTS/$teacher" --data-dir "$1"
}

learnt() {
  local words teacher=$PARTS/${3%%-*}/model.safetensors
  read -ra words <<<"$(learning "$2" "$3")"
  part "$2-$3" dkl "${words[@]}" --teacher "$teacher" --workdir "$PARTS/$2-$3" --data-dir "$1"
}

# A line per student, from the last event of its distillation.
students() {
  "$PYTHON" - "$PARTS" "$@" <<'PY'
import json
import sys
from pathlib import Path

from dkl.catalog import RECIPES

folder, names = Path(sys.argv[1]), sys.argv[2:]
columns = ("teacher", "student", "published", "points", "epochs", "hours")
print(f"{'recipe':42}", *(f"{column:>9}" for column in columns))
for name in names:
    method, _, pair = name.partition(" ")
    recipe = f"{method}-cifar100-{pair}"
    result = json.loads((folder / f"{method}-{pair}.txt").read_text().splitlines()[-1])["result"]
    said, found = RECIPES[recipe].published, result["clean_accuracy"]
    beside = (f"{said.accuracy:.2%}", f"{100 * (found - said.accuracy):+.2f}") if said else ("-", "-")
    hours = f"{result['seconds'] / 3600:.2f}"
    cells = (f"{result['teacher_accuracy']:.2%}", f"{found:.2%}", *beside, result["epochs"], hours)
    print(f"{recipe:42}", *(f"{cell:>9}" for cell in cells))
PY
}

distillation() {
  local data=${1:?which folder holds CIFAR-100?} out command="benchmarks/gpu.sh distillation $1" pair lesson
  local learners=()
  for pair in "${PAIRS[@]}"; do
    for lesson in "${LESSONS[@]}"; do learners+=("$lesson $pair"); done
  done
  out=${RESULTS:-$(results distillation)}
  mkdir -p "$PARTS"
  part distill-steps "$PYTHON" benchmarks/distill_step.py --device "$DEVICE" "${LESSON_STEPS[@]}"
  printf '%s\n' "${PAIRS[@]}" | in_turns taught "$data"
  printf '%s\n' "${learners[@]}" | in_turns learnt "$data"
  {
    echo "$command"
    machine
    echo
    cat "$PARTS/distill-steps.txt"
    echo
    students "${learners[@]}"
    for learner in "${PAIRS[@]%%-*}" "${learners[@]/ /-}"; do
      echo
      head -1 "$PARTS/$learner.txt"
      grep '"kind":"epoch"' "$PARTS/$learner.txt" | tail -1
      tail -1 "$PARTS/$learner.txt"
    done
  } >"$out"
  echo "written to $out"
}

autoattack() {
  local checkpoint=${1:?which checkpoint?} data=${2:?which folder holds CIFAR-10?} images=${3:-$IMAGES}
  local command=("$PYTHON" benchmarks/autoattack.py --device "$DEVICE" --checkpoint "$checkpoint"
    --dataset cifar10 --data-dir "$data" --images "$images")
  {
    echo "${command[*]}"
    machine
    ceiling
    "${command[@]}"
  } 2>&1 | tee "${RESULTS:-$(results autoattack)}"
}

# What the card does in 16 bits at most: the yardstick for the share of it that `fast` reaches.
ceiling() {
  "$PYTHON" - <<'PY'
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
}

case ${1:-} in
  training | autoattack | recipes | distillation | distillation-recipes) "$@" ;;
  *)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
    ;;
esac
