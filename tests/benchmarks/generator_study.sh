#!/bin/sh
# Trains, samples and judges the generators of issue 16 on a GPU machine, from the copied working tree (branch synth).
# Needs: REGISTRY (core_mri_data, key 570; its key file REGISTRY.key or KEY), OUT; PYTHONPATH with the wheels.
# Knobs: GEN_SECONDS (each training, default 60), GEN_JOBS (trainings at a time, 5), GEN_DEADLINE (of all, 310 s),
#        GEN_GROUPS (default: all four), ENCODER (weights folder for KID; empty: radiomics only).
# Output: $OUT/figures.json, $OUT/GROUP.tar.gz (weights in float16, at most 12 MB each), $OUT/pairs.tar.gz.
set -e
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=2 RAY_AUTH_MODE=disabled PYTHONUNBUFFERED=1
KEY="${KEY:-$REGISTRY.key}"
if [ ! -f "$KEY" ]; then KEY=/tmp/synth.key; printf '%064x\n' 570 > $KEY; fi
chmod 600 "$KEY"
python3 -m tests.benchmarks.generator_study --registry "$REGISTRY" --key-file "$KEY" \
  --out "${GEN_WORK:-/tmp/generators}" --pack "$OUT" \
  --seconds "${GEN_SECONDS:-60}" --jobs "${GEN_JOBS:-5}" --suite-steps "${GEN_SUITE_STEPS:-400}" --deadline "${GEN_DEADLINE:-310}" \
  --encoder "${ENCODER:-}" ${GEN_GROUPS:+--groups $GEN_GROUPS} "$@" 2>&1 | tee "$OUT/study.log"
