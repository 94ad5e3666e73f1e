#!/usr/bin/env bash
# The code below compiler/operator asks for no mode, phase, preset or argument by its name: all that
# it needs is in the operator.   names.sh SOURCE
#
# The exceptions, each with its reason, are below; one that is no longer needed is an error too.
set -euo pipefail
cd "$1"

places=(compiler/schedule compiler/lowering compiler/passes compiler/target compiler/machine
  compiler/export compiler/session compiler/oracle/Inputs.cpp compiler/oracle/Compare.cpp
  compiler/oracle/Bounds.cpp runtime)
enums='\bPhase::|\bMode::|Semantics::|Fused::|EpsilonPosition::|RunningVariance::|MomentumWeighs::'
words='x|y|dx|dy|gamma|beta|dgamma|dbeta|addend|daddend|factor|dfactor|bias|dbias|residual|sum'
words+='|moving_mean|moving_variance|batch_mean|batch_variance|relu_mask|epsilon|momentum|count'
words+='|inference|training|backward|feature|sample|batch|group|instance|rms|layer'
words+='|keras-1\.2|pytorch|onnx-15|relu|moments|finalize|normalize'

# FILE<tab>TEXT<tab>REASON
exceptions=$(
  cat <<'END'
compiler/session/CompilerEntry.cpp	Phase::Inference	the phase of a request before its spec is read
runtime/api/CApi.cpp	"inference",  "training",     "backward"	the numbers that the C API gives phases
runtime/api/CApi.cpp	"moments",    "gradient_sums"	the numbers that the C API gives phases
runtime/kernel/ForeignNames.h	{"	words of frameworks beside ours
END
)

found=$(grep -rnE "($enums)|\"($words)\"" --include='*.h' --include='*.cpp' "${places[@]}" |
  sed -E 's,//.*|/\*.*,,' | grep -E "($enums)|\"($words)\"" || true) # no comments
failed=0
while IFS=$'\t' read -r file text reason; do
  if ! grep -F "$file:" <<<"$found" | grep -qF -- "$text"; then
    echo "names.sh: no longer needed: $file: $text ($reason)" >&2
    failed=1
  fi
  found=$(awk -v file="$file:" -v text="$text" \
    'index($0, file) != 1 || index($0, text) == 0' <<<"$found")
done <<<"$exceptions"
if [ -n "$found" ]; then
  echo "names.sh: these ask for something by its name:" >&2
  echo "$found" >&2
  failed=1
fi
exit "$failed"
