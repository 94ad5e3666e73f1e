// Reading one value: numbers, names, choices, and what to say when it is none of them.
//
// Numbers, booleans and null are those of YAML 1.2's core schema.
#pragma once

#include "compiler/spec/Document.h"

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace normforge::spec {

struct Integer {
  int64_t value = 0;
  bool tooLarge = false; ///< it is an integer, but not one of 64 bits
};

/// Empty unless `value` is written as an integer: 12, -1, 0x10, 0o17.
std::optional<Integer> asInteger(const Value &value);
/// Empty unless `value` is a number that f64 holds; .inf and .nan are not.
std::optional<double> asNumber(const Value &value);
std::optional<bool> asBool(const Value &value);
/// A scalar that YAML reads as text, not as a number, boolean or null.
std::optional<std::string_view> asWord(const Value &value);
bool isNull(const Value &value);
bool isIdentifier(std::string_view text);

/// A value in words, for "expected ...; found ...": 'text', a list, a mapping, nothing.
std::string found(const Value &value);

/// A word of the language. `built` is false where it is part of it but not built yet.
struct Choice {
  std::string_view name;
  bool built = true;
};
/// Another framework's word, and ours.
using Alias = std::pair<std::string_view, std::string_view>;

/// The index of the choice that `value` names. Otherwise empty and an error that calls it `what`
/// and names what was `expected`, by default the choices that are built.
std::optional<size_t> choose(const Value &value, std::string_view what,
                             std::span<const Choice> choices, Diagnostics &diagnostics,
                             std::span<const Alias> aliases = {}, std::string expected = {});
/// The choice that a key makes: a word, or a mapping of it alone to more.
struct Chosen {
  Value word;
  const Value *more = nullptr; ///< none, or null in the text: nothing
};
/// Empty where a mapping has another number of keys than one.
std::optional<Chosen> chosenBy(const Value &value);
/// `value` as a boolean, or an error.
std::optional<bool> readBool(const Value &value, std::string_view key, Diagnostics &diagnostics);

} // namespace normforge::spec
