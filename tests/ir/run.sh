#!/usr/bin/env bash
# Runs the RUN lines of one test:   run.sh NORMFORGE NORMFORGE_OPT FILECHECK FILE
#
# A test is a spec (.test) or IR (.mlir) whose comments say what to run and what must be found:
#   # RUN: normforge compile %s --emit=vector | FileCheck %s --check-prefix=VECTOR
#   // RUN: normforge-opt --nf-form-tasks %s | FileCheck %s
# %s is the test's own path, %t a file that is removed at the end. A line fails when any command in it does.
set -uo pipefail
normforge_command=$1 opt_command=$2 filecheck_command=$3 test=$4

normforge() { "$normforge_command" "$@"; }
normforge-opt() { "$opt_command" "$@"; }
FileCheck() { "$filecheck_command" "$@"; }

temporary=$(mktemp)
trap 'rm -f "$temporary"' EXIT
count=0 failed=0
while IFS= read -r line; do
  count=$((count + 1))
  line=${line//%s/\"\$test\"}
  if ! (set -o pipefail; eval "${line//%t/\"\$temporary\"}"); then
    echo "$test: failed: $line" >&2
    echo "repeat with: tests/ir/run.sh $normforge_command $opt_command $filecheck_command $test" >&2
    failed=1
  fi
done < <(sed -nE 's,^(#|//) RUN: *,,p' "$test")
if [ "$count" = 0 ]; then
  echo "$test: no RUN line" >&2
  exit 1
fi
exit "$failed"
