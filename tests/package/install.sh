#!/usr/bin/env bash
# An installation works from where it lies, and nothing is left of it afterwards:
#   install.sh SOURCE BUILD FOLDER
set -euo pipefail
source=$1 build=$2 folder=$3
rm -rf "$folder"
mkdir -p "$folder/consumer"
export NORMFORGE_CACHE_DIR=$folder/cache

fail() { echo "install.sh: $*" >&2; exit 1; }

echo "-- install"
cmake --install "$build" --prefix "$folder/prefix" >"$folder/log" || { cat "$folder/log"; exit 1; }
library=$(find "$folder/prefix" -name 'libnormforge.so')
[ -n "$library" ] || fail "no libnormforge.so is installed"
[ -x "$folder/prefix/bin/normforge" ] || fail "no command is installed"
for header in abi.h normforge.h normforge.hpp openmp.h; do
  [ -f "$folder/prefix/include/normforge/$header" ] || fail "$header is not installed"
done

for folder_of_debian in doc lintian; do
  [ ! -e "$folder/prefix/share/$folder_of_debian" ] || fail "share/$folder_of_debian is installed"
done

echo "-- the installed command"
(cd "$folder" && prefix/bin/normforge compile "$source/examples/ahead.yaml" --emit=obj,header -o ahead.o)
cc -I"$folder" "$source/examples/ahead.c" "$folder/ahead.o" -lm -o "$folder/ahead"
"$folder/ahead"

echo "-- a CMake project that finds the package"
cp "$source/examples/embed.c" "$source/examples/thread_pool.cpp" "$folder/consumer"
cat >"$folder/consumer/CMakeLists.txt" <<'TEXT'
cmake_minimum_required(VERSION 3.25)
project(Consumer LANGUAGES C CXX)
find_package(Normforge 0.1 REQUIRED)
add_executable(embed embed.c)
target_link_libraries(embed PRIVATE Normforge::runtime)
# C++20 comes with the target.
add_executable(pool thread_pool.cpp)
target_link_libraries(pool PRIVATE Normforge::runtime)
add_executable(static thread_pool.cpp)
target_link_libraries(static PRIVATE Normforge::runtime-static)
TEXT
cmake -S "$folder/consumer" -B "$folder/consumer/build" -DCMAKE_PREFIX_PATH="$folder/prefix" \
  >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
cmake --build "$folder/consumer/build" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
"$folder/consumer/build/embed"
"$folder/consumer/build/pool"
# The one that has the runtime within it looks for the compiler beside itself, then as the loader does.
ldd "$folder/consumer/build/static" | grep libnormforge && fail "the static program needs a library"
LD_LIBRARY_PATH=$(dirname "$library") "$folder/consumer/build/static"

echo "-- a project in C alone"
mkdir -p "$folder/plain"
cp "$source/examples/embed.c" "$folder/plain"
cat >"$folder/plain/CMakeLists.txt" <<'TEXT'
cmake_minimum_required(VERSION 3.25)
project(Plain LANGUAGES C)
find_package(Normforge 0.1 REQUIRED)
add_executable(plain embed.c)
target_link_libraries(plain PRIVATE Normforge::runtime-static)
TEXT
{ cmake -S "$folder/plain" -B "$folder/plain/build" -DCMAKE_PREFIX_PATH="$folder/prefix" &&
  cmake --build "$folder/plain/build"; } >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
LD_LIBRARY_PATH=$(dirname "$library") "$folder/plain/build/plain"

echo "-- C++17 is told in one line what it lacks"
echo '#include <normforge/normforge.hpp>' | g++ -std=c++17 -fsyntax-only -I"$folder/prefix/include" -x c++ - \
  2>"$folder/log" && fail "normforge.hpp was compiled as C++17"
[ "$(grep -c ' error: ' "$folder/log")" = 1 ] || { cat "$folder/log"; fail "more than one error"; }

echo "-- the manual page and completions"
for file in man/man1/normforge.1.gz bash-completion/completions/normforge \
  zsh/vendor-completions/_normforge fish/vendor_completions.d/normforge.fish; do
  [ -s "$folder/prefix/share/$file" ] || fail "$file is not installed"
done
gzip -dc "$folder/prefix/share/man/man1/normforge.1.gz" | grep -q '^\.SH COMMANDS' || fail "no manual page"
"$folder/prefix/bin/normforge-bench" --help >"$folder/log"

if command -v pkg-config >/dev/null; then
  echo "-- pkg-config"
  PKG_CONFIG_PATH=$(dirname "$library")/pkgconfig
  export PKG_CONFIG_PATH
  # shellcheck disable=SC2046
  cc "$source/examples/embed.c" $(pkg-config --cflags --libs normforge) \
    -Wl,-rpath,"$(dirname "$library")" -o "$folder/embed"
  "$folder/embed"
else
  echo "SKIP: pkg-config is not installed"
fi

echo "-- uninstall"
# The same as `cmake --build BUILD --target uninstall`, without a look at what else is to be built.
cmake -DMANIFEST="$build/install_manifest.txt" -P "$source/runtime/package/Uninstall.cmake"
left=$(find "$folder/prefix" -mindepth 1)
[ -z "$left" ] || fail "uninstalling leaves $left"

if command -v dpkg-deb >/dev/null && command -v dpkg-shlibdeps >/dev/null; then
  echo "-- Debian packages"
  (cd "$folder" && cpack -G DEB --config "$build/CPackConfig.cmake") >"$folder/log" 2>&1 ||
    { cat "$folder/log"; exit 1; }
  for package in libnormforge0.1 libnormforge-dev libnormforge-compiler0.1 normforge-tune normforge; do
    file=$(find "$folder" -maxdepth 1 -name "${package}_*.deb")
    [ -n "$file" ] || fail "no package $package"
    echo "$package: $(dpkg-deb -f "$file" Installed-Size) KiB, needs $(dpkg-deb -f "$file" Depends)"
    dpkg-deb -x "$file" "$folder/root"
    [ -s "$folder/root/usr/share/doc/$package/copyright" ] || fail "$package has no copyright file"
  done
  # Other packages of this version; libraries in the folder of the machine.
  for package in libnormforge-dev libnormforge-compiler0.1; do
    dpkg-deb -f "$folder/${package}"_*.deb Depends | grep -q 'libnormforge0.1 (= ' ||
      fail "$package takes any version of the library"
  done
  dpkg-deb -f "$folder"/normforge_*.deb Depends | grep -q 'libnormforge-compiler0.1 (= ' ||
    fail "the command takes any version of the compiler"
  [ -e "$folder/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)/libnormforge.so.0.1" ] ||
    fail "the library is in no multiarch folder: $(find "$folder/root" -name 'libnormforge.so*')"
  if command -v lintian >/dev/null; then
    lintian --fail-on error "$folder"/*.deb >"$folder/log" 2>&1 || { cat "$folder/log"; fail "lintian finds errors"; }
  else
    echo "SKIP: lintian is not installed"
  fi
  # The runtime's package needs no LLVM, the compiler's does.
  dpkg-deb -f "$folder"/libnormforge0.1_*.deb Depends | grep -q -i llvm && fail "the runtime needs LLVM"
  dpkg-deb -f "$folder"/libnormforge-compiler0.1_*.deb Depends | grep -q -i llvm || fail "the compiler needs LLVM"
  cc "$source/examples/embed.c" -I"$folder/root/usr/include" \
    -L"$(dirname "$(find "$folder/root" -name libnormforge.so)")" -lnormforge \
    -Wl,-rpath,"$(dirname "$(find "$folder/root" -name libnormforge.so)")" -o "$folder/packaged"
  "$folder/packaged"
else
  echo "SKIP: dpkg-deb and dpkg-shlibdeps (Debian's dpkg-dev) are not both installed"
fi
echo "all is well"
