#include "tests/numerics/LayoutCases.h"

#include <algorithm>
#include <fmt/format.h>

namespace normforge::test {

namespace {

const Shape shapes[] = {
    {"c", "S", "c"},
    {"nc", "M, S", "c"},
    {"nc", "S, M", "c"},
    {"nc", "S, M", "n"},
    {"ncw", "M, 3, S", "c"},
    {"ncw", "M, S, 3", "c"},
    {"nwc", "M, 3, S", "c"},
    {"nwc", "M, S, 3", "c"},
    {"tnc", "M, 2, S", "c"},
    {"tnc", "M, S, 5", "[t, c]"},
    {"tnc", "S, M, 5", "n"},
    {"nchw", "M, 3, 1, S", "c"},
    {"nchw", "M, S, 3, 2", "c"},
    {"nchw", "M, 3, 2, S", "[c, h, w]"},
    {"nchw", "M, 3, S, 2", "[n, c]"},
    {"nhwc", "M, 2, 3, S", "c"},
    {"nhwc", "M, S, 3, 5", "c"},
    {"nhwc", "M, 3, 2, S", "[h, c]"},
    {"ncdhw", "M, 3, 2, 2, S", "c"},
    {"ndhwc", "M, 2, 2, 3, S", "c"},
    {"ndhwc", "M, 2, S, 2, 3", "[d, c]"},
    {"ntcdhw", "M, 2, 3, 2, 1, S", "c"},
    {"ntdhwc", "M, 2, 1, 2, 2, S", "[t, c]"},
    {"nChw8c", "M, S, 3, 2", "c"},
    {"nChw8c", "M, 11, 1, S", "c"},
    {"nChw16c", "M, S, 2, 3", "c"},
    {"nChw16c", "M, 19, 1, S", "[c, w]"},
};

const char *const fusions[] = {"[]", "[add]", "[relu]", "[add, relu]", "[relu, add]"};

} // namespace

std::span<const Shape> layoutShapes() { return shapes; }

std::vector<Kind> kinds(const std::vector<const char *> &cpus) {
  std::vector<Kind> all;
  for (Mode mode : {Mode::Feature, Mode::Sample, Mode::Batch, Mode::Instance, Mode::Rms,
                    Mode::Group, Mode::Range})
    for (Phase phase : {Phase::Inference, Phase::Training, Phase::Backward, Phase::Population})
      for (const char *dtype : {"f32", "f64", "bf16", "f16"})
        for (const char *cpu : cpus) {
          const bool isHalf = std::string_view(dtype).find("16") != std::string_view::npos;
          // The changes of half precision do not depend on the mode; AVX-512 without conversions of
          // bf16 differs in half precision alone.
          const Mode ofHalf = phase == Phase::Training ? Mode::Feature : Mode::Sample;
          // Gradients of mode 2 are those of mode 0, and forward passes of instance and rms those
          // of mode 1; f64 differs from f32 in the length of vectors alone, as the CPUs do, and
          // mode 1 has all that gradients need.
          const bool isFirst = cpu == cpus.front(), isSingle = std::string_view(dtype) == "f32";
          const bool isOwn =
              mode == Mode::Range ? isSingle && (phase == Phase::Population ||
                                                 (phase == Phase::Inference && isFirst))
              : phase == Phase::Backward
                  ? mode != Mode::Batch && isSingle && (isFirst || mode == Mode::Sample)
              : phase == Phase::Population ? mode == Mode::Feature && isFirst && isSingle
              : mode == Mode::Group        ? phase == Phase::Training && isSingle
                                           : mode <= Mode::Batch;
          if (isHalf ? mode == ofHalf && phase != Phase::Population
                     : isOwn && std::string_view(cpu) != "skylake-avx512")
            all.push_back({mode, phase, dtype, cpu});
        }
  return all;
}

bool exists(const Shape &shape, const Kind &kind) {
  const std::string_view axis = shape.axis, layout = shape.layout;
  if (kind.mode != Mode::Instance && kind.mode != Mode::Group)
    return kind.mode == Mode::Sample || kind.mode == Mode::Rms || layout != "c";
  const char samples = layout.find('n') != layout.npos ? 'n' : layout.front();
  const auto letters = std::count_if(axis.begin(), axis.end(), [](char c) { return c >= 'a'; });
  const auto axes = std::string(layout).find_first_of("0123456789") == std::string::npos
                        ? layout.size()
                        : size_t(4);
  if (axis.find(samples) != axis.npos)
    return false;
  return kind.mode == Mode::Group ? letters == 1 : static_cast<size_t>(letters) + 1 < axes;
}

/// The size of the one axis as the shape has it.
static std::string sizeOfAxis(const Shape &shape) {
  std::string_view sizes = shape.shape;
  for (const char *letter = shape.layout; *letter != shape.axis[0]; ++letter)
    if ((*letter | 0x20) == shape.axis[0]) // a block's
      break;
    else
      sizes.remove_prefix(sizes.find(' ') + 1);
  return std::string(sizes.substr(0, sizes.find(',')));
}

int64_t groupsOf(const Shape &shape) {
  const int64_t size = std::atoll(sizeOfAxis(shape).c_str());
  return size > 0 ? size : 3;
}

int64_t factorOf(const Shape &shape, const Kind &kind, char letter) {
  return kind.mode == Mode::Group && sizeOfAxis(shape) == std::string{letter} ? groupsOf(shape) : 1;
}

std::string replaced(std::string text, char letter, const std::string &by) {
  for (size_t at; (at = text.find(letter)) != std::string::npos;)
    text.replace(at, 1, by);
  return text;
}

std::string layoutYaml(const Shape &shape, const Kind &kind, const std::string &sizes,
                       size_t turn) {
  const char *const presets[] = {"pytorch", "onnx-15", "keras-1.2"};
  // Keras' mode 1 takes the last axis alone.
  const char *preset = presets[turn % (kind.mode == Mode::Sample ? 2 : 3)];
  std::string text = fmt::format(
      "name: layouts\nsemantics: {}\ninput: {{shape: [{}], layout: {}, dtype: {}}}\naxis: {}\n"
      "mode: {}\nphases: [inference, {}]\nfuse: {}\n",
      preset, sizes, shape.layout, kind.dtype, shape.axis, toString(kind.mode),
      kind.mode == Mode::Range ? "population" : "training, backward",
      fusions[turn % std::size(fusions)]);
  if (kind.mode == Mode::Group)
    text += fmt::format("groups: {}\n", groupsOf(shape));
  if (turn % 7 == 3)
    text += "center: false\n";
  if (turn % 7 == 5)
    text += "scale: false\n";
  return text;
}

} // namespace normforge::test
