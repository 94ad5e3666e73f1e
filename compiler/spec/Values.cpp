#include "compiler/spec/Values.h"

#include <algorithm>
#include <charconv>

namespace normforge::spec {
namespace {

bool isDigit(char c) { return c >= '0' && c <= '9'; }
bool isLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

bool isOneOf(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

/// [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
bool isFloat(std::string_view text) {
  auto digits = [&text] {
    size_t count = 0;
    for (; !text.empty() && isDigit(text.front()); ++count)
      text.remove_prefix(1);
    return count;
  };
  if (!text.empty() && (text.front() == '-' || text.front() == '+'))
    text.remove_prefix(1);
  size_t whole = digits();
  if (!text.empty() && text.front() == '.') {
    text.remove_prefix(1);
    if (digits() == 0 && whole == 0)
      return false;
  } else if (whole == 0) {
    return false;
  }
  if (!text.empty() && (text.front() == 'e' || text.front() == 'E')) {
    text.remove_prefix(1);
    if (!text.empty() && (text.front() == '-' || text.front() == '+'))
      text.remove_prefix(1);
    if (digits() == 0)
      return false;
  }
  return text.empty();
}

bool isSpecialFloat(std::string_view text) {
  if (!text.empty() && (text.front() == '-' || text.front() == '+'))
    text.remove_prefix(1);
  return isOneOf(text, {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"});
}

} // namespace

std::optional<Integer> asInteger(const Value &value) {
  if (!value.isScalar() || !value.plain)
    return std::nullopt;
  std::string_view text = value.text;
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0o")) {
    base = text[1] == 'x' ? 16 : 8;
    text.remove_prefix(2);
    if (text.starts_with("-"))
      return std::nullopt;
  } else if (text.starts_with("+")) {
    text.remove_prefix(1);
    if (text.starts_with("-"))
      return std::nullopt;
  }
  Integer integer;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), integer.value, base);
  if (error == std::errc::invalid_argument || end != text.data() + text.size())
    return std::nullopt;
  integer.tooLarge = error == std::errc::result_out_of_range;
  return integer;
}

std::optional<double> asNumber(const Value &value) {
  if (std::optional<Integer> integer = asInteger(value); integer && !integer->tooLarge)
    return static_cast<double>(integer->value);
  if (!value.isScalar() || !value.plain || !isFloat(value.text))
    return std::nullopt;
  std::string_view text = value.text;
  if (text.starts_with("+"))
    text.remove_prefix(1);
  double number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return number;
}

std::optional<bool> asBool(const Value &value) {
  if (value.isScalar() && value.plain) {
    if (isOneOf(value.text, {"true", "True", "TRUE"}))
      return true;
    if (isOneOf(value.text, {"false", "False", "FALSE"}))
      return false;
  }
  return std::nullopt;
}

bool isNull(const Value &value) {
  return value.kind == Value::Kind::Null ||
         (value.isScalar() && value.plain &&
          isOneOf(value.text, {"", "~", "null", "Null", "NULL"}));
}

std::optional<std::string_view> asWord(const Value &value) {
  if (!value.isScalar() || isNull(value) || asBool(value) || asInteger(value) ||
      (value.plain && (isFloat(value.text) || isSpecialFloat(value.text))))
    return std::nullopt;
  return value.text;
}

bool isIdentifier(std::string_view text) {
  return !text.empty() && isLetter(text.front()) &&
         std::all_of(text.begin(), text.end(), [](char c) { return isLetter(c) || isDigit(c); });
}

std::string found(const Value &value) {
  switch (value.kind) {
  case Value::Kind::List:
    return "a list";
  case Value::Kind::Mapping:
    return "a mapping";
  case Value::Kind::Null:
    return "nothing";
  case Value::Kind::Scalar:
    break;
  }
  if (isNull(value))
    return value.text.empty() ? "nothing" : "null";
  bool bare = value.plain && (isFloat(value.text) || isSpecialFloat(value.text) ||
                              asInteger(value) || asBool(value));
  // A quoted number is text: the quotes say why it was not taken.
  return bare && value.text.size() <= 40 ? value.text : quoted(value.text);
}

std::optional<size_t> choose(const Value &value, std::string_view what,
                             std::span<const Choice> choices, Diagnostics &diagnostics,
                             std::span<const Alias> aliases, std::string expected) {
  std::vector<std::string_view> all, built;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (value.isScalar() && value.text == choices[i].name && choices[i].built)
      return i;
    all.push_back(choices[i].name);
    if (choices[i].built)
      built.push_back(choices[i].name);
  }
  if (expected.empty())
    expected = listed(built);
  if (!value.isScalar() || isNull(value)) {
    diagnostics.error(value.offset,
                      fmt::format("{} must be {}; found {}", what, expected, found(value)));
    return std::nullopt;
  }
  std::string_view name = value.text;
  for (auto [theirs, ours] : aliases)
    if (value.text == theirs)
      name = ours;
  for (const Choice &choice : choices) {
    if (name == choice.name && !choice.built) {
      diagnostics.unbuilt(value.offset, fmt::format("{} {} is not built yet; expected {}", what,
                                                    quoted(value.text), expected));
      return std::nullopt;
    }
  }
  const std::optional<std::string_view> suggestion = name == value.text ? nearest(name, all) : name;
  diagnostics.error(
      value.offset,
      suggestion ? fmt::format("unknown {} {}; did you mean '{}'?", what, found(value), *suggestion)
                 : fmt::format("unknown {} {}; expected {}", what, found(value), expected));
  return std::nullopt;
}

std::optional<Chosen> chosenBy(const Value &value) {
  if (value.isMapping() && value.entries.size() == 1) {
    const Entry &only = value.entries.front();
    Value word;
    word.kind = Value::Kind::Scalar;
    word.text = only.key;
    word.offset = only.offset;
    return Chosen{std::move(word), isNull(only.value) ? nullptr : &only.value};
  }
  return value.isMapping() ? std::nullopt : std::optional(Chosen{value});
}

std::optional<bool> readBool(const Value &value, std::string_view key, Diagnostics &diagnostics) {
  std::optional<bool> result = asBool(value);
  if (!result)
    diagnostics.error(value.offset,
                      fmt::format("{} must be true or false; found {}", key, found(value)));
  return result;
}

} // namespace normforge::spec
