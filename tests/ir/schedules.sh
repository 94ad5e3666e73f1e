#!/usr/bin/env bash
# Which schedules specs get on CPUs, as tests/data/schedules.txt has it.
#   schedules.sh DIGEST TABLE
# A change of the heuristic changes the table: look at the difference, then
#   build/bin/normforge_digest schedules tests/data/schedules.txt > new && mv new tests/data/schedules.txt
set -euo pipefail
digest=$1 table=$2
if ! diff -u "$table" <("$digest" schedules "$table"); then
  echo "the heuristic chooses other schedules than $table has; see the first lines of $0" >&2
  exit 1
fi
echo "$(wc -l <"$table") schedules are those of the table"
