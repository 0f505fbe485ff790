# shellcheck shell=bash
# What the experiments train with: to be read by `source`.

# wanted NAME: whether METHODS, names with spaces between, has that one; without it all are wanted.
wanted() {
    [[ " ${METHODS:-$1} " == *" $1 "* ]]
}

# trained RUN FLAGS...: a training in the folder RUN, which goes on where it was ended; once it is
# complete its last line is RUN.json, and it is not run again. RUN.log has all that it said.
trained() {
    local run=$1
    shift
    if [ ! -e "$run.json" ]; then
        echo "== $(basename "$run")"
        python -m evovit_jax.main --workdir="$run" "$@" | tee -a "$run.log"
        tail -n 1 "$run.log" >"$run.part"
        mv "$run.part" "$run.json"
    fi
}
