#!/bin/sh
# Runs the whole suite under three settings that together have every value once (instruction sets of torch and oneDNN,
# number of threads, a path with a space, real data, pandas), and prints a table: setting, passed, failed, skipped.
#
#   tests/machines.sh [FOLDER]   logs go to FOLDER, build/machines by default; WORKERS=4 for an idle machine of 4 cores
#   ALL=1 tests/machines.sh      every combination of instruction sets and threads, for the tests that depend on rounding
#
# A setting whose log ends with pytest's summary is not run again, so an interrupted run goes on.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
logs=${1:-$root/build/machines}
mkdir -p "$logs" && logs=$(cd "$logs" && pwd)
workers=${WORKERS:-2}
python=$root/.venv/bin/python
ROUNDING="tests/grpo tests/scoring tests/evaluation tests/demo tests/stages/test_baselines.py tests/stages/test_train.py
  tests/stages/test_golden_scoring.py tests/stages/test_screen.py tests/stages/test_score.py tests/commands/test_plan.py"

# count LOG WORD: the number before WORD in pytest's last line
count() { tail -n 1 "$1" | grep -oE "[0-9]+ $2" | grep -oE "[0-9]+" || echo 0; }

# row NAME FOLDER TESTS [VARIABLE=VALUE…]: runs tests in a folder under a setting and prints its line of the table
row() {
    name=$1 folder=$2 tests=$3 log="$logs/$(echo "$1" | tr ' =/' '___').log"
    shift 3
    if ! tail -n 1 "$log" 2>/dev/null | grep -qE " in [0-9.]+s"; then
        # shellcheck disable=SC2086  # a list of tests
        (cd "$folder" && env -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA "$@" nice "$python" -m pytest -q \
            -p no:cacheprovider --timeout 900 --numprocesses "$workers" --dist loadgroup $tests) >"$log" 2>&1
    fi
    failed=$(($(count "$log" failed) + $(count "$log" error)))
    printf '%-62s %7s %7s %8s\n' "$name" "$(count "$log" passed)" "$failed" "$(count "$log" skipped)"
    total=$((total + failed))
}

total=0
printf '%-62s %7s %7s %8s\n' setting passed failed skipped

if [ -n "${ALL:-}" ]; then
    for threads in 1 2 4; do
        for capability in default avx2 unset; do
            for onednn in AVX2 unset; do
                set -- "OMP_NUM_THREADS=$threads"
                [ $capability = unset ] || set -- "$@" "ATEN_CPU_CAPABILITY=$capability"
                [ $onednn = unset ] || set -- "$@" "ONEDNN_MAX_CPU_ISA=$onednn"
                row "$*" "$root" "$ROUNDING" "$@"
            done
        done
    done
    exit $((total > 0))
fi

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
git clone --quiet "$root" "$elsewhere/a checkout"
ln -s "$root/.venv" "$elsewhere/a checkout/.venv"
mkdir "$elsewhere/blocked"
cat >"$elsewhere/blocked/sitecustomize.py" <<'PYTHON'
import sys
from importlib.machinery import PathFinder


class WithoutPandas(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "pandas" else PathFinder.find_spec(name, path, target)


sys.meta_path = [WithoutPandas if finder is PathFinder else finder for finder in sys.meta_path]
PYTHON
row "default, AVX2, 1 thread, a path with a space, RPT_REAL_DATA" "$elsewhere/a checkout" "" OMP_NUM_THREADS=1 \
    ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 "PYTHONPATH=$elsewhere/a checkout" \
    "RPT_VLLM_PYTHON=$root/.venv-vllm/bin/python" # vLLM itself fails from a path with a space
row "avx2, 4 threads, no pandas, no RPT_REAL_DATA" "$root" "" -u RPT_REAL_DATA OMP_NUM_THREADS=4 \
    ATEN_CPU_CAPABILITY=avx2 "PYTHONPATH=$elsewhere/blocked"
row "this machine's, 2 threads" "$root" "" OMP_NUM_THREADS=2
exit $((total > 0))
