#!/usr/bin/env bash
# What each reduction loses on published weights, before and after it is trained with:
#
#     experiments/finetune_cifar10.sh CIFAR10 WEIGHTS OUTPUT [SEED...]
#
# CIFAR10 holds train/CLASS/IMAGE and test/CLASS/IMAGE, WEIGHTS are DeiT-tiny's. The dense network
# learns from 5,000 images for three epochs; from where it ended each reduction of about 0.8 GMACs
# gets the same budget, and so does the dense network itself. All are evaluated on 2,000 test images.
# About 80 minutes a seed on 2 CPU cores; the same command goes on where it was ended. A step takes its
# images four at a time, which keeps their activations in a core's caches; the sums are the same.
# METHODS="evo tome" runs these alone: once the fine-tuning and what comes before the methods is there,
# several such commands can share the work.
# `python experiments/results.py OUTPUT` prints the tables of docs/results.md and writes their logs.
# SMOKE=1 does the same with tiny sizes in a minute or two.
set -euo pipefail
images=${1:?experiments/finetune_cifar10.sh CIFAR10 WEIGHTS OUTPUT [SEED...]}
weights=${2:?say where the weights of deit_tiny_patch16_224 are}
output=${3:?say where the results go}
shift 3
seeds=("${@:-0}")
cd "$(dirname "$0")/.."
mkdir -p "$output"
source experiments/training.sh

names=(dense evo evit dynamicvit tome topk)
reductions=(none evo,keep_rate=0.475 evit,keep_rate=0.682 dynamicvit,keep_rate=0.69 tome,r=11
    topk,keep_rate=0.694)
config=configs/cifar10_deit_t_finetune.py train=500 test=200 size=(--config.accumulate=16)
if [ "${SMOKE:-}" ]; then
    train=2 test=1 size=(--config.total_steps=2 --config.eval_steps=2 --config.batch_size=4
        --config.eval_batch_size=5 --config.model.depth=4 '--config.init_allow_missing=.*')
fi

# subset SPLIT COUNT: the first images of each class, in the order of their names.
subset() {
    if [ ! -e "$output/images/$1" ]; then
        for class in "$images/$1"/*/; do
            mkdir -p "$output/images/$1.part/$(basename "$class")"
            find "$class" -type f | sort | sed -n "1,$2p" |
                xargs -I{} cp {} "$output/images/$1.part/$(basename "$class")"
        done
        mv "$output/images/$1.part" "$output/images/$1"
    fi
}

# train NAME SEED INIT FLAGS...: a run in OUTPUT/NAME_SEED.
train() {
    local run=$1_$2 seed=$2 init=$3
    shift 3
    trained "$output/$run" --config="$config" --config.seed="$seed" \
        --config.data="folder:$output/images/train" \
        --config.eval_data="folder:$output/images/test" --config.init_weights="$init" \
        "${size[@]}" "$@"
}

# judge RUN REDUCTIONS NAME: top-1 of a run's weights with its interval.
judge() {
    if [ ! -e "$output/$3/compare.csv" ]; then
        python -m evovit_jax.compare --weights="$output/$1" --reductions="$2" --rounds=1 \
            --data="folder:$output/images/test" --output="$output/$3"
    fi
}

subset train "$train"
subset test "$test"
for seed in "${seeds[@]}"; do
    train start "$seed" "$weights"
    # DynamicViT's predictors know nothing before they have learnt.
    untrained=$(printf '%s;' "${reductions[@]}" | sed 's/dynamicvit[^;]*;//; s/;$//')
    judge "start_$seed" "$untrained" "before_$seed"
    for which in "${!names[@]}"; do
        name=${names[which]} fields=()
        wanted "$name" || continue
        if [ "$name" = dynamicvit ]; then
            fields=(--config.distill.kind=self
                '--config.loss.reducer_weights=(("ratio",2.0),("distill_.*",0.5))')
        fi
        train "$name" "$seed" "$output/start_$seed" --config.reduction="${reductions[which]}" \
            "${fields[@]}"
        judge "${name}_$seed" "${reductions[which]}" "after_${name}_$seed"
    done
done
