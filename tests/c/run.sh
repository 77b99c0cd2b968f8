#!/bin/sh
# Runs the C test programs named on the command line, as build/c/<compiler>-<variant>/<test>, one after the other.
# Exit 0 is a pass, 77 a skip whose reason is the last line of output, anything else a failure, whose output is shown.

export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_stack_use_after_return=1}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1:die_after_fork=0}"

passed=0 failed=0 skipped=0 said=

for program; do
    folder=$(dirname "$program")
    name=$(basename "$folder")/$(basename "$program")
    if [ -e "$folder/.unusable" ]; then
        [ "$folder" = "$said" ] || echo "SKIP $(basename "$folder"): $(cat "$folder/.unusable")"
        said=$folder
        skipped=$((skipped + 1))
        continue
    fi
    case $folder in
    *-tsan) run=$TSAN_RUN ;;
    *) run= ;;
    esac
    # shellcheck disable=SC2086 # $run is two words or none
    timeout "${TEST_TIMEOUT:-300}" $run "$program" >"$program.log" 2>&1 </dev/null
    rc=$?
    case $rc in
    0)
        passed=$((passed + 1))
        echo "ok   $name"
        ;;
    77)
        skipped=$((skipped + 1))
        echo "SKIP $name: $(tail -n 1 "$program.log")"
        ;;
    *)
        failed=$((failed + 1))
        [ $rc = 124 ] && why="timed out after ${TEST_TIMEOUT:-300} s" || why="exit status $rc"
        echo "FAIL $name: $why; its output:"
        sed 's/^/     /' "$program.log"
        ;;
    esac
done

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] || exit 1
[ $((passed + skipped)) != 0 ] || {
    echo "no C test was found" >&2
    exit 1
}
