#!/bin/sh
# What to run first when a large GPU is lent for minutes: no questions, and what is done comes home.
#
#   sh results/gpu.sh OUT
#   DEVICE=cpu PRECISION=fp32 RECIPE=quick:epochs=3,train_images=200,width=0.0625 \
#     sh results/gpu.sh OUT        # a rehearsal on a processor
#
# Run it in the root of the checkout. Environment: MINUTES in all (9), JOBS side by side (4), DATA
# (data) and STORE (store). Called again with the same STORE and OUT it continues.
set -eu
out=$1
device=${DEVICE:-cuda}
start=$(date +%s)
mkdir -p "$out"

left() { echo $((start + 60 * ${MINUTES:-9} - $(date +%s))); }

campaign() { # NAME [options]: as results/NAME/grid.toml has it, at full width
  name=$1
  shift
  [ "$(left)" -gt 20 ] || return 0
  python run_bench.py --config "results/$name/grid.toml" --recipe "${RECIPE:-standard:width=1}" \
    --device "$device" --precision "${PRECISION:-bf16}" --jobs-per-gpu "${JOBS:-4}" \
    --data-dir "${DATA:-data}" --store "${STORE:-store}" --results-dir "$out/$name-wide" \
    --time-limit "$(($(left) - 15))s" "$@" >>"$out/$name.log" 2>&1 || echo "$name: exit $?"
  tar czf "$out/records.tgz" -C "$out" $(cd "$out" && ls -d ./*-wide)
}

# 1. The device computes what the processor does.
timeout 90 python -m pytest -q -m gpu >"$out/tests.log" 2>&1 || echo "tests: exit $?"
tail -n 1 "$out/tests.log"
# 2. What it reaches; this decides how much fits.
timeout 150 python -m bench.speed --device "$device" --rounds 1 --only crafting,training \
  --data-dir "${DATA:-data}" --out "$out/speed.json" >"$out/speed.log" 2>&1 || echo "speed: exit $?"
# 3. The core table, its rows at 2/255, then another architecture.
campaign standard
campaign standard-2-255 --archs rn18
campaign standard-2-255
campaign standard --archs vgg16
echo "$(left) seconds left"
