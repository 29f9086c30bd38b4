# Sourced by train.sh and test.sh with their arguments, EXP DATASET GPUS [Section.key=value ...]:
# checks them, leaves only the overrides in "$@", and defines $python, $config, $gpus and run.

fail() {
    echo "$*" >&2
    exit 2
}

cd "$(dirname "$0")"
case ${1:-} in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$(basename "$0")"
    exit 0
    ;;
esac
[ $# -ge 3 ] ||
    fail "usage: [NET=resnet50] sh $(basename "$0") EXP DATASET GPUS [Section.key=value ...]"
config=config/$2/$2_$1_${NET:=resnet50}.yaml
gpus=$3
if [ ! -d "config/$2" ]; then
    fail "error: no data set $2 in config/; there is:$(ls config | sed '/^_/d; s/^/ /' | tr -d '\n')"
elif [ ! -f "$config" ]; then
    fail "error: no $config; EXP_NET can be:$(ls "config/$2" | sed "s/^$2_/ /; s/\.yaml$//" | tr -d '\n')"
fi
case $gpus in
'' | *[!0-9]*) fail "error: GPUS is a number of GPUs, or 0 for the CPU; given '$gpus'" ;;
esac
shift 3

python=${PYTHON:-}
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
if [ "$gpus" -gt 0 ]; then
    "$python" -m util.distributed "$gpus"
fi

# Runs a script of this folder on the chosen devices: run SCRIPT [Section.key=value ...]
run() {
    script=$1
    shift
    set -- "$script" --config "$config" --gpus "$gpus" "$@"
    if [ "$gpus" -gt 1 ]; then
        "$python" -m torch.distributed.run --standalone --nproc_per_node="$gpus" "$@"
    else
        "$python" "$@"
    fi
}
