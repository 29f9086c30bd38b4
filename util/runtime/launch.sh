# Sourced by train.sh and test.sh with their arguments, EXP DATASET GPUS [Section.key=value ...]:
# checks them, leaves only the overrides in "$@", and defines $python, $config, $gpus, run and become.

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
exp=$1
dataset=$2
if [ ! -d "config/$2" ]; then
    fail "error: no data set $2 in config/; there is:$(ls config | sed '/^_/d; /^sweeps$/d; s/^/ /' | tr -d '\n')"
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
    "$python" -m util.runtime.distributed "$gpus"
fi

if [ "${NNODES:-1}" -gt 1 ] && { [ -z "${NODE_RANK:-}" ] || [ -z "${RDZV:-}" ]; }; then
    fail "error: NNODES=$NNODES also needs NODE_RANK and RDZV=HOST:PORT, see docs/cluster.md"
fi
export AMFORMER_SH="NET=$NET sh $0 $exp $dataset $gpus"  # for the command that goes on

# Turns this shell into a script of this folder, on the chosen devices:
# become SCRIPT [Section.key=value ...]
become() {
    script=$1
    shift
    set -- "$script" --config "$config" --gpus "$gpus" "$@"
    if [ "${NNODES:-1}" -gt 1 ]; then
        is_host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)
        set -- --nnodes="$NNODES" --rdzv-backend=c10d --rdzv-endpoint="$RDZV" \
            --rdzv-id="${RDZV_ID:-amformer}" --rdzv-conf="is_host=$is_host" "$@"
    fi
    if [ "$gpus" -gt 1 ] || [ "${NNODES:-1}" -gt 1 ]; then
        processes=$((gpus > 1 ? gpus : 1))
        # shellcheck disable=SC2086  # TORCHRUN is words
        exec "$python" -m util.runtime.launch --nproc-per-node="$processes" ${TORCHRUN:-} "$@"
    fi
    exec "$python" "$@"
}

# Runs it and comes back; $asked: a signal came. SIGTERM, SIGHUP and SIGUSR1 are passed on; Ctrl-C reaches
# the group by itself.
run() {
    (become "$@") &
    child=$!
    asked=
    trap 'asked=1; kill -TERM "$child" 2>/dev/null || :' TERM
    trap 'asked=1; kill -USR1 "$child" 2>/dev/null || :' USR1
    trap 'asked=1; kill -HUP "$child" 2>/dev/null || :' HUP
    trap 'asked=1' INT
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a trap has ended the wait
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT USR1 HUP
    [ "$status" -eq 0 ] || exit "$status"
}
