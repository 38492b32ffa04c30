#!/usr/bin/env bash
# All GPU suites on a host with two NVIDIA GPUs and no network, in one session: what the runs named 2026-*_h200x2-* came from.
#
#   measurements/h200.sh prepare OUT TRT_PYTHON PYTHON      describes the systems and makes the models (about 2 minutes)
#   measurements/h200.sh measure OUT TRT_PYTHON PYTHON S    measures for S seconds; again: goes on where it stopped
#
# One GPU serves MLP and ResNet-50, the other BERT-base; all peers of a model share their GPU, one after the other.
set -u
step=$1 out=$2 trt=$3 py=$4
export BENCH_MODELS=${BENCH_MODELS:-/tmp/bench-models} CUDA_MODULE_LOADING=LAZY
trt_id=${TRT_ID:-h200x2-trt86} py_id=${PY_ID:-h200x2-ort131}
mkdir -p "$out/runs" "$out/systems" "$BENCH_MODELS"
bench() { # GPU, interpreter, system, suite, budget, patterns…
  local gpu=$1 python=$2 system=$3 suite=$4 budget=$5; shift 5
  CUDA_VISIBLE_DEVICES=$gpu "$python" -m course.bench "$suite" --system "$system" --out "$out/runs" --budget "$budget" --only "$@" 2>> "$out/errors.$gpu"
}
case $step in
prepare)
  "$trt" -m course.system "$trt_id" "$out/systems" > /dev/null
  "$py" -m course.system "$py_id" "$out/systems" > /dev/null
  (CUDA_VISIBLE_DEVICES=0 "$py" -m course.bench.models "$BENCH_MODELS" mlp resnet50 2> "$out/models.0" || tail -5 "$out/models.0") &
  (CUDA_VISIBLE_DEVICES=1 "$py" -m course.bench.models "$BENCH_MODELS" bert 2> "$out/models.1" || tail -5 "$out/models.1") &
  wait ;;
measure)
  end=$((SECONDS + $5))
  left() { echo $((end - SECONDS)); }
  (
    bench 0 "$py" "$py_id" micro "$(left)" 'copy' 'matmul-*'
    for model in mlp resnet50; do
      bench 0 "$py" "$py_id" gpu "$(left)" "$model-fp16-*-compile" "$model-fp16-*-torch*" "$model-fp16-*-ort"
      bench 0 "$trt" "$trt_id" gpu "$(left)" "$model-fp16-*-trt"
    done
    bench 0 "$trt" "$trt_id" gpu "$(left)" 'mlp-*-trt' 'resnet50-int8-*-trt' 'resnet50-tf32-*-trt'
    bench 0 "$py" "$py_id" gpu "$(left)" 'mlp-*-[toc]*' 'resnet50-*-[toc]*'
    bench 0 "$trt" "$trt_id" gpu "$(left)" 'resnet50-*-trt'
  ) > "$out/progress.0" &
  (
    bench 1 "$py" "$py_id" gpu "$(left)" 'bert-fp16-*-compile' 'bert-fp16-*-torch*' 'bert-fp16-*-ort'
    bench 1 "$trt" "$trt_id" gpu "$(left)" 'bert-fp16-*-trt' 'bert-tf32-*-trt' 'bert-int8-*-trt'
    bench 1 "$py" "$py_id" gpu "$(left)" 'bert-*-[toc]*'
    bench 1 "$py" "$py_id" micro "$(left)" '*'
    bench 1 "$trt" "$trt_id" gpu "$(left)" 'bert-*-trt'
    bench 1 "$py" "$py_id" gpu "$(left)" 'bert-fp16-*-autotune'
  ) > "$out/progress.1" &
  wait
  tail -n 40 "$out"/progress.? ;;
esac
