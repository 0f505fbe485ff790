#!/usr/bin/env bash
# CIFAR-10 from scratch with each reduction, 18 epochs of `configs/cifar10_deit.py:cpu` each:
#
#     experiments/scratch_cifar10.sh CIFAR10 OUTPUT [SEED...]
#
# CIFAR10 holds train/CLASS/IMAGE and test/CLASS/IMAGE. The network has 16 tokens of 8 px, six blocks
# and 21 million multiply-adds dense, each reduction about 15 million. Half an hour a run on one CPU
# core, six runs a seed; the same command goes on where it was ended. A step takes 32 images at a
# time, which keeps their activations in a core's caches; the sums are the same.
# METHODS="evo tome" runs these alone, so that several such commands can share the work.
# `python experiments/results.py OUTPUT --prefix=scratch` prints the tables of docs/results.md and
# writes their logs. SMOKE=1 does the same with tiny sizes in a minute or two.
set -euo pipefail
images=${1:?experiments/scratch_cifar10.sh CIFAR10 OUTPUT [SEED...]}
output=${2:?say where the results go}
shift 2
cd "$(dirname "$0")/.."
mkdir -p "$output"
source experiments/training.sh

names=(dense evo evit dynamicvit tome topk)
reductions=(none evo evit,keep_rate=0.65 dynamicvit,keep_rate=0.8 tome,r=2:1:2:1:1:1
    topk,keep_rate=0.8)
length=(--config.total_epochs=18 --config.accumulate=4)
if [ "${SMOKE:-}" ]; then
    length=(--config.total_epochs=1 --config.warmup_epochs=0.1 --config.batch_size=10
        --config.eval_batch_size=5)
fi

for seed in "${@:-0}"; do
    for which in "${!names[@]}"; do
        wanted "${names[which]}" || continue
        trained "$output/${names[which]}_$seed" --config=configs/cifar10_deit.py:cpu \
            --config.data="folder:$images/train" --config.eval_data="folder:$images/test" \
            --config.seed="$seed" --config.reduction="${reductions[which]}" "${length[@]}"
    done
done
