#!/usr/bin/env bash
# The GPU suites on a host without network: all peers of a model one after the other on one GPU, precision by precision.
#
#   measurements/h200.sh prepare OUT TRT_PYTHON PYTHON MODEL...              describes the systems, makes the models (about a minute a model)
#   measurements/h200.sh measure OUT TRT_PYTHON PYTHON SECONDS GPU MODEL...  measures for so long on that GPU; again: goes on where it stopped
#
# MODEL is mlp, resnet50, bert, or micro for the machine's ceilings and the experiments; bert:fp16,int8 measures only these precisions. On a host with
# several GPUs call `measure` once a GPU, side by side, each with its GPU and its models. TRT_ID and PY_ID name the systems. One GPU needs about half an
# hour for a model in all precisions: an engine takes a minute to build, a compilation a quarter of one.
set -u
step=$1 out=$2 trt=$3 py=$4
shift 4
export BENCH_MODELS=${BENCH_MODELS:-/tmp/bench-models} CUDA_MODULE_LOADING=LAZY BENCH_NCU=${BENCH_NCU-1}
trt_id=${TRT_ID:-h200-trt86} py_id=${PY_ID:-h200-ort131}
mkdir -p "$out/runs" "$out/systems" "$BENCH_MODELS"
case $step in
prepare)
  "$trt" -m course.system "$trt_id" "$out/systems" > /dev/null
  "$py" -m course.system "$py_id" "$out/systems" > /dev/null
  for model in "$@"; do
    [ "$model" = micro ] || { "$py" -m course.bench.models "$BENCH_MODELS" "$model" 2> "$out/models.$model" || tail -5 "$out/models.$model"; } &
  done
  wait ;;
measure)
  end=$((SECONDS + $1)); gpu=$2; shift 2
  bench() { # interpreter, system, suite, patterns…
    local python=$1 system=$2 suite=$3; shift 3
    [ $((end - SECONDS)) -lt 5 ] ||
      CUDA_VISIBLE_DEVICES=$gpu "$python" -m course.bench "$suite" --system "$system" --out "$out/runs" --budget $((end - SECONDS)) --only "$@" 2>> "$out/errors.$gpu"
  }
  for asked in "$@"; do
    model=${asked%%:*} precisions=fp16,int8,tf32,fp32
    [ "$model" = "$asked" ] || precisions=${asked#*:}
    if [ "$model" = micro ]; then
      bench "$py" "$py_id" micro '*'
      continue
    fi
    for precision in ${precisions//,/ }; do
      bench "$trt" "$trt_id" gpu "$model-$precision-*-trt"
      bench "$py" "$py_id" gpu "$model-$precision-*-compile" "$model-$precision-*-torch*" "$model-$precision-*-ort"
    done
  done | tee "$out/progress.$gpu" ;;
esac
