#!/usr/bin/env bash
# GPU benchmarks against PyTorch on the same card: parts of a model, distillation steps, whole images.
#
#     cargo build --release -p benches --bins -p examples --example generate \
#         --no-default-features --features benches/cuda,examples/cuda
#     benches/peers/gpu.sh BINARIES RESULTS
#
# BINARIES is the folder with `parts`, `steps` and `generate`. Needs diffusers, peft and 20 GiB. Each table is printed and written
# to RESULTS as JSON; the model is created there if it does not exist.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binaries=$(cd "$1" && pwd)
mkdir -p "$2" && cd "$2"
[ -d model ] || python3 "$here/make_model.py" model --clip
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

for dtype in bf16 f16 f32; do
    for batch in 1 4; do
        echo "== parts, $dtype, batch $batch"
        python3 "$here/parts.py" model --device cuda --binary "$binaries/parts" --dtype $dtype --batch $batch \
            --rounds 20 --warm-up 5 --peers compile graphs --json "parts-$dtype-$batch.json"
    done
done
for scheme in a b; do
    echo "== one step of scheme $scheme, bf16"
    python3 "$here/train_step.py" model --device cuda --binary "$binaries/steps" --scheme $scheme --precision bf16 --batch 8 \
        --rounds 10 --warm-up 3 --json "step-$scheme.json"
done
for dtype in bf16 f16; do
    echo "== whole images, $dtype: the first run, which autotunes, then the following ones"
    python3 "$here/compare.py" model --device cuda --binary "$binaries/generate" --dtype $dtype --runs 3 --json "picture-$dtype.json"
done
