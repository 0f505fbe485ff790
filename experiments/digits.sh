#!/usr/bin/env bash
# The runs on digits of docs/results.md, about eight minutes a seed on 2 CPU cores:
#
#     experiments/digits.sh OUTPUT [SEED...]
#
# The same command goes on where it was ended. `python experiments/results.py OUTPUT --prefix=digits`
# prints the table and writes the logs.
set -euo pipefail
output=${1:?experiments/digits.sh OUTPUT [SEED...]}
shift
cd "$(dirname "$0")/.."
mkdir -p "$output"
source experiments/training.sh
for seed in "${@:-0}"; do
    for config in digits_deit digits_evo levit_digits levit_digits_evo; do
        trained "$output/${config}_$seed" --config="configs/$config.py" --config.seed="$seed"
    done
done
