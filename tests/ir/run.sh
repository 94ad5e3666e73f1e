#!/usr/bin/env bash
# Runs the RUN lines of one test:   run.sh NORMFORGE FILECHECK FILE.test
#
# A test is a spec whose comments say what to run and what must be found:
#   # RUN: normforge compile %s --emit=vector | FileCheck %s --check-prefix=VECTOR
# %s is the test's own path, %t a file that is removed at the end. A line fails when any command in it does.
set -uo pipefail
normforge_command=$1 filecheck_command=$2 test=$3

normforge() { "$normforge_command" "$@"; }
FileCheck() { "$filecheck_command" "$@"; }

temporary=$(mktemp)
trap 'rm -f "$temporary"' EXIT
count=0 failed=0
while IFS= read -r line; do
  count=$((count + 1))
  line=${line//%s/\"\$test\"}
  if ! (set -o pipefail; eval "${line//%t/\"\$temporary\"}"); then
    echo "$test: failed: $line" >&2
    echo "repeat with: tests/ir/run.sh $normforge_command $filecheck_command $test" >&2
    failed=1
  fi
done < <(sed -n 's/^# RUN: *//p' "$test")
if [ "$count" = 0 ]; then
  echo "$test: no RUN line" >&2
  exit 1
fi
exit "$failed"
