#!/bin/sh
# Trains config/DATASET/DATASET_EXP_NET.yaml, the base learner first when its file is absent.
# usage: [NET=resnet50] [PYTHON=python] sh train.sh EXP DATASET GPUS [Section.key=value ...]
# GPUS: how many of this machine's GPUs, 0 for the CPU.
set -eu
. "$(dirname "$0")/util/launch.sh"

pre_weight=$("$python" -m util.config "$config" "$@" --get Method.pre_weight)
[ -n "$pre_weight" ] || fail "error: $config: Method.pre_weight is empty; name the base learner's file"
if [ ! -f "$pre_weight" ]; then
    echo "$pre_weight is absent: stage one trains the base learner first"
    run train_base.py "$@"
fi
run train.py "$@"
