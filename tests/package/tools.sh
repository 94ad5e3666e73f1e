# For scripts that take SOURCE BUILD FOLDER as source, build and folder: the folder made, `skip`,
# and in `tools` an environment of Python with the packages of a file, made anew where that changes.
#   . tools.sh REQUIREMENTS
mkdir -p "$folder"
skip() {
  echo "SKIP: $*"
  exit 0
}
command -v python3 >/dev/null || skip "python3 is not installed"
tools=$folder/tools
if ! cmp -s "$source/$1" "$tools/installed.txt"; then
  rm -rf "$tools"
  python3 -m venv "$tools" >"$folder/log" 2>&1 || skip "python3 -m venv: $(tail -n 1 "$folder/log")"
  timeout 240 "$tools/bin/pip" install --quiet --disable-pip-version-check -r "$source/$1" \
    >"$folder/log" 2>&1 || skip "the packages of $1 cannot be installed: $(tail -n 1 "$folder/log")"
  cp "$source/$1" "$tools/installed.txt"
fi
