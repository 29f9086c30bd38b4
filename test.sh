#!/bin/sh
# Tests what train.sh trained from config/DATASET/DATASET_EXP_NET.yaml.
# usage: [NET=resnet50] [PYTHON=python] sh test.sh EXP DATASET GPUS [Section.key=value ...]
# EXP: split0 ... split3, or split0_5shot ..., then _bam, _hdmnet or _pfenet for another system than
# AMFormer, as split0_5shot_bam; DATASET: a folder of config/; GPUS: how many of this
# machine's GPUs, 0 for the CPU; NET: the end of the config's name; Section.key=value: any key of
# docs/config.md; -v says more.
set -eu
. "$(dirname "$0")/util/runtime/launch.sh"

"$python" -m util.config "$config" "$@" --get Train.save_path >/dev/null  # refuse mistakes before any process starts
become test.py "$@"
