#!/bin/sh
# Trains config/DATASET/DATASET_EXP_NET.yaml, the base learner first when its file is absent.
# usage: [NET=resnet50] [PYTHON=python] sh train.sh EXP DATASET GPUS [Section.key=value ...]
# EXP: split0 ... split3, or split0_5shot ..., then _bam, _hdmnet or _pfenet for another system than
# AMFormer, as split0_5shot_bam; DATASET: a folder of config/; GPUS: how many of this
# machine's GPUs, 0 for the CPU; NET: the end of the config's name; Section.key=value: any key of
# docs/config.md; -v says more. Several machines: docs/cluster.md.
# Ctrl-C and SIGTERM: the iteration is finished and the state saved; a second one leaves at once.
set -eu
. "$(dirname "$0")/util/runtime/launch.sh"

pre_weight=$("$python" -m util.config "$config" "$@" --get Method.pre_weight)
# Without a name there is no base learner; train.py says so if the system needs one.
if [ -n "$pre_weight" ] && [ ! -f "$pre_weight" ]; then
    echo "$pre_weight is absent: stage one trains the base learner first"
    run train_base.py "$@"
    [ -f "$pre_weight" ] || exit 0 # asked to stop, it has said how to go on
    if [ -n "$asked" ]; then
        echo "stopped between the stages; the same command goes on"
        exit 0
    fi
fi
become train.py "$@"
