#!/bin/bash
# One node with eight GPUs. ENGINE=ddp (default) copies the model to each; ENGINE=fsdp spreads it over all (FSDP2).
#   ENGINE=fsdp examples/node8.sh recipes/attention_routing/dynamic.yaml --out runs/dynamic
set -eu
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
if [ "${ENGINE:-ddp}" = fsdp ]; then
  exec accelerate launch --config_file "$(dirname "$0")/fsdp2.yaml" --num_processes "${GPUS:-8}" -m layerroute train "$@"
fi
exec torchrun --standalone --nproc-per-node "${GPUS:-8}" -m layerroute train "$@"
