#!/usr/bin/env bash
# What only a GPU can tell, the most telling first, in about 40 minutes on one card:
#
#     experiments/gpu.sh OUTPUT [DATA]
#
# OUTPUT is a folder; a step whose result lies there is not run again, so that the command goes on
# where it was stopped. DATA holds CIFAR-10 as DATA/train/CLASS/IMAGE and DATA/test/CLASS/IMAGE;
# without it nothing is trained. OUTPUT/tables.md has all tables, with their commands.
# SMOKE=1 does the same with tiny sizes on whatever is there, in a few minutes on a CPU.
set -euo pipefail
output=${1:?say where the results go: experiments/gpu.sh OUTPUT [DATA]}
data=${2:-}
cd "$(dirname "$0")/.."
mkdir -p "$output"
source experiments/training.sh
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$output/cache}

if [ "${SMOKE:-}" ]; then
    models="deit_tiny_patch16_224;evo_deit_tiny_patch16_224"
    methods="deit_tiny_patch16_224;deit_tiny_patch16_224+evit,keep_rate=0.7"
    evo=evo_deit_tiny_patch16_224 evo_fields=evo multiples="1 8"
    sizes=1,2 many=2 training=2 quick="--image_size=32 --rounds=1 --seconds=0.01" peers=""
    variant=:smoke seeds=0 fields="" others=""
else
    models="deit_small_patch16_224;evo_deit_small_patch16_224"
    models="$models;deit_base_patch16_224;evo_deit_base_patch16_224;levit_256;evo_levit_256"
    methods="deit_small_patch16_224;deit_small_patch16_224+evit,keep_rate=0.7"
    methods="$methods;deit_small_patch16_224+tome,r=13;deit_small_patch16_224+dynamicvit"
    evo=evo_deit_small_patch16_224 evo_fields=evo multiples="1 8 16 32"
    sizes=1,64,256,1024 many=256 training=64,256 quick="--rounds=5 --seconds=1" peers=""
    if python -c "import timm" 2>/dev/null; then peers=--peers=timm; fi
    # 256 tokens of 2 px.
    variant="" seeds="0 1 2" fields="--config.model.patch_size=2"
    others="evit,keep_rate=0.7 tome,r=16"
fi

# benchmark NAME FLAGS...: one table, unless it is there.
benchmark() {
    local name=$1
    shift
    if [ ! -e "$output/$name/benchmark.json" ]; then
        echo "== $name"
        # shellcheck disable=SC2086  # several flags each
        python -m evovit_jax.benchmark --dtype=bfloat16 $quick "$@" --output="$output/$name.part"
        printf '    python -m evovit_jax.benchmark --dtype=bfloat16 %s' "$quick" >"$output/$name.part/command"
        printf " '%s'" "$@" >>"$output/$name.part/command"
        rm -rf "${output:?}/$name"  # what lacks its table
        mv "$output/$name.part" "$output/$name"
    fi
}

# train NAME CONFIG FLAGS...: one run; what it has done of it already is kept.
train() {
    local name=$1 config=$2
    shift 2
    # shellcheck disable=SC2086
    trained "$output/$name" --config="configs/$config.py$variant" $fields "$@"
}

benchmark inference --models="$models" --batch_sizes="$sizes" $peers
benchmark training --models="${models%%;*};$evo" --mode=train --batch_sizes="$training" $peers
benchmark methods --models="$methods" --batch_sizes="$many"
list=""
for multiple in $multiples; do list="$list;$evo+$evo_fields,keep_multiple=$multiple"; done
benchmark keep_multiple --models="${list#;}" --batch_sizes="$many"

if [ "$data" ] || [ "${SMOKE:-}" ]; then
    given=()
    if [ ! "${SMOKE:-}" ]; then
        given=("--config.data=folder:$data/train" "--config.eval_data=folder:$data/test")
    fi
    for seed in $seeds; do
        train "evo_$seed" cifar10_evo --config.seed="$seed" "${given[@]}"
        train "dense_$seed" cifar10_deit --config.seed="$seed" "${given[@]}"
        for method in $others; do
            train "${method%%,*}_$seed" cifar10_deit --config.seed="$seed" \
                --config.reduction="$method" "${given[@]}"
        done
    done
fi

{
    for table in inference training methods keep_multiple; do
        printf '## %s\n\n%s\n\n' "$table" "$(cat "$output/$table/command")"
        cat "$output/$table/benchmark.md"
        echo
    done
    if compgen -G "$output/*_[0-9].json" >/dev/null; then
        printf '## CIFAR-10 from scratch\n\n| run | top-1 | top-5 | images a second |\n|---|---|---|---|\n'
        for run in "$output"/*_[0-9].json; do
            python -c 'import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
found = json.loads(path.read_text())
names = ("val_top1", "val_top5", "images_per_second")
print("|", path.stem, "|", " | ".join(f"{found[name]:.1f}" for name in names), "|")' "$run"
        done
    fi
} >"$output/tables.md"
echo "tables: $output/tables.md"
