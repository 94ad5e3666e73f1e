// Specs put together key by key: text of YAML.
#include "runtime/api/Guard.h"

#include <charconv>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

using namespace normforge;
using namespace normforge::api;

namespace {

/// A value that is text already, items of a list, or parts by their names.
struct Entry {
  enum class Kind : uint8_t { Value, List, Parts } kind = Kind::Value;
  std::string value{};
  std::vector<std::string> items{};
  std::vector<std::pair<std::string, Entry>> parts{};
};

/// In double quotes, as YAML and JSON read it.
std::string quoted(std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "\"";
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (byte < ' ' || byte == 0x7f)
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    else
      out += c;
  }
  return out + "\"";
}

/// A word that is itself in YAML; all else in quotes.
std::string word(std::string_view text) {
  auto isPlain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '+';
  };
  const bool isWord = !text.empty() && std::ranges::all_of(text, isPlain) &&
                      !(text[0] >= '0' && text[0] <= '9') && text[0] != '-' && text[0] != '+' &&
                      text != "true" && text != "false" && text != "null";
  return isWord ? std::string(text) : quoted(text);
}

/// In the fewest digits that give the number back.
std::string numberText(double number) {
  char digits[32];
  // Whole numbers as such: 1e5 is none to a key that takes them.
  const bool isWhole = number == std::trunc(number) && std::abs(number) < 0x1p53;
  const auto end =
      isWhole ? std::to_chars(digits, digits + sizeof digits, number, std::chars_format::fixed).ptr
              : std::to_chars(digits, digits + sizeof digits, number).ptr;
  return {digits, end};
}

void write(const Entry &entry, size_t depth, std::string &out) {
  switch (entry.kind) {
  case Entry::Kind::Value:
    out += " " + entry.value + "\n";
    return;
  case Entry::Kind::List:
    out += " [";
    for (size_t i = 0; i < entry.items.size(); ++i)
      out += (i ? ", " : "") + entry.items[i];
    out += "]\n";
    return;
  case Entry::Kind::Parts:
    if (depth > 0)
      out += "\n";
    for (const auto &[name, part] : entry.parts) {
      out += std::string(2 * depth, ' ') + name + ":";
      write(part, depth + 1, out);
    }
    return;
  }
}

} // namespace

struct nf_spec {
  Entry root{.kind = Entry::Kind::Parts};
  std::string text;
};

namespace {

bool missing(Failure &failure, const char *what) {
  return failure.set(NF_INVALID_ARGUMENT, std::string(what) + " is NULL");
}

/// Changes the entry of a key, which is made where it is not there, of what `change` says; all of
/// it or nothing.
template <typename Change>
nf_status *changed(nf_spec *spec, const char *key, Entry::Kind kind, Change change) {
  return guarded([&](Failure &failure) {
    if (!spec)
      return missing(failure, "spec");
    if (!key)
      return missing(failure, "key");
    Entry root = spec->root;
    Entry *at = &root;
    std::string_view rest = key;
    for (bool isLast = false; !isLast;) {
      const size_t dot = rest.find('.');
      isLast = dot == std::string_view::npos;
      const std::string name(rest.substr(0, dot));
      if (name.empty() || word(name) != name)
        return failure.set(NF_INVALID_ARGUMENT, "the key '" + std::string(key) +
                                                    "' is none: expected names with dots between");
      if (at->kind != Entry::Kind::Parts)
        return failure.set(NF_INVALID_ARGUMENT,
                           "the key '" + std::string(key) + "' is part of one that has a value");
      auto found = std::ranges::find(at->parts, name, &std::pair<std::string, Entry>::first);
      if (found == at->parts.end()) {
        at->parts.emplace_back(name, Entry{.kind = isLast ? kind : Entry::Kind::Parts});
        found = at->parts.end() - 1;
      }
      at = &found->second;
      if (!isLast)
        rest.remove_prefix(dot + 1);
    }
    if (at->kind != kind)
      return failure.set(NF_INVALID_ARGUMENT, "the key '" + std::string(key) + "' has " +
                                                  (at->kind == Entry::Kind::List    ? "a list"
                                                   : at->kind == Entry::Kind::Value ? "a value"
                                                                                    : "parts") +
                                                  " already");
    if (!change(*at, failure))
      return false;
    spec->root = std::move(root);
    return true;
  });
}

bool isFinite(double number, Failure &failure) {
  return std::isfinite(number) || failure.set(NF_INVALID_ARGUMENT, "a number is not finite");
}

} // namespace

extern "C" {

nf_status *nf_spec_create(nf_spec **spec) {
  return guarded([&](Failure &failure) {
    if (!spec)
      return missing(failure, "spec");
    *spec = nullptr;
    *spec = new nf_spec;
    return true;
  });
}
void nf_spec_free(nf_spec *spec) { delete spec; }

nf_status *nf_spec_input(nf_spec *spec, const int64_t *sizes, const char *const *names, size_t rank,
                         const char *layout, nf_dtype dtype) {
  return changed(spec, "input", Entry::Kind::Parts, [&](Entry &input, Failure &failure) {
    constexpr const char *dtypes[] = {"", "f32", "f64", "bf16", "f16"};
    if (!sizes && !names)
      return missing(failure, "sizes");
    const auto type = static_cast<int64_t>(numberOf(dtype));
    if (type < NF_F32 || type > NF_F16)
      return failure.set(NF_INVALID_ARGUMENT,
                         "dtype is none of NF_F32, NF_F64, NF_BF16 and NF_F16");
    Entry shape{.kind = Entry::Kind::List};
    for (size_t i = 0; i < rank; ++i) {
      const bool isNamed = names && names[i];
      if (!isNamed && !sizes)
        return missing(failure, "sizes");
      shape.items.push_back(isNamed ? word(names[i]) : std::to_string(sizes[i]));
    }
    input.parts.clear();
    input.parts.emplace_back("shape", std::move(shape));
    if (layout)
      input.parts.emplace_back("layout", Entry{.value = word(layout)});
    input.parts.emplace_back("dtype", Entry{.value = dtypes[type]});
    return true;
  });
}

nf_status *nf_spec_set_text(nf_spec *spec, const char *key, const char *text) {
  return changed(spec, key, Entry::Kind::Value, [&](Entry &entry, Failure &failure) {
    if (!text)
      return missing(failure, "text");
    entry.value = word(text);
    return true;
  });
}

nf_status *nf_spec_set_number(nf_spec *spec, const char *key, double number) {
  return changed(spec, key, Entry::Kind::Value, [&](Entry &entry, Failure &failure) {
    entry.value = numberText(number);
    return isFinite(number, failure);
  });
}

nf_status *nf_spec_set_flag(nf_spec *spec, const char *key, int flag) {
  return changed(spec, key, Entry::Kind::Value, [&](Entry &entry, Failure &) {
    entry.value = flag ? "true" : "false";
    return true;
  });
}

nf_status *nf_spec_add_word(nf_spec *spec, const char *key, const char *text) {
  return changed(spec, key, Entry::Kind::List, [&](Entry &entry, Failure &failure) {
    if (!text)
      return missing(failure, "word");
    entry.items.push_back(word(text));
    return true;
  });
}

nf_status *nf_spec_add_function(nf_spec *spec, const char *steps, const char *function,
                                const double *numbers, size_t count) {
  return changed(spec, steps, Entry::Kind::List, [&](Entry &entry, Failure &failure) {
    if (!function || (!numbers && count > 0))
      return missing(failure, function ? "numbers" : "function");
    std::string text;
    for (size_t i = 0; i < count; ++i) {
      if (!isFinite(numbers[i], failure))
        return false;
      text += (i ? ", " : "") + numberText(numbers[i]);
    }
    entry.items.push_back(count == 0   ? word(function)
                          : count == 1 ? "{" + word(function) + ": " + text + "}"
                                       : "{" + word(function) + ": [" + text + "]}");
    return true;
  });
}

nf_status *nf_spec_add_operand(nf_spec *spec, const char *steps, const char *operation,
                               const char *name) {
  return changed(spec, steps, Entry::Kind::List, [&](Entry &entry, Failure &failure) {
    if (!operation)
      return missing(failure, "operation");
    entry.items.push_back(name ? "{" + word(operation) + ": {name: " + word(name) + "}}"
                               : word(operation));
    return true;
  });
}

nf_status *nf_spec_add_formula(nf_spec *spec, const char *steps, const char *formula) {
  return changed(spec, steps, Entry::Kind::List, [&](Entry &entry, Failure &failure) {
    if (!formula)
      return missing(failure, "formula");
    entry.items.push_back("{expr: " + quoted(formula) + "}");
    return true;
  });
}

const char *nf_spec_text(nf_spec *spec, size_t *bytes) {
  const char *found = nullptr;
  nf_status_free(guarded([&](Failure &) {
    std::string text;
    write(spec->root, 0, text);
    spec->text = std::move(text);
    found = spec->text.c_str();
    if (bytes)
      *bytes = spec->text.size();
    return true;
  }));
  return found;
}

} // extern "C"
