#!/bin/sh
# Trains config/DATASET/DATASET_EXP_NET.yaml, the base learner first when its file is absent.
# usage: [NET=resnet50] [PYTHON=python] sh train.sh EXP DATASET GPUS [Section.key=value ...]
# EXP: split0 ... split3, or split0_5shot ...; DATASET: a folder of config/; GPUS: how many of this
# machine's GPUs, 0 for the CPU; NET: the end of the config's name; Section.key=value: any key of
# docs/config.md; -v says more.
set -eu
. "$(dirname "$0")/util/launch.sh"

pre_weight=$("$python" -m util.config "$config" "$@" --get Method.pre_weight)
[ -n "$pre_weight" ] || fail "error: $config: Method.pre_weight is empty; name the base learner's file"
if [ ! -f "$pre_weight" ]; then
    echo "$pre_weight is absent: stage one trains the base learner first"
    run train_base.py "$@"
fi
run train.py "$@"
