// The cases of the tests of other machines.
#include "tests/cross/CrossSuite.h"

#include "tests/cross/CrossProgram.h"
#include "tests/numerics/FrameworkCases.h"
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/LayoutCases.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

struct Expectation {
  std::string what; ///< the spec and its sizes, for messages
  Spec spec;
  Phase phase;
};

/// Every form of the kernel, each called with these sizes.
void addCalls(CrossProgram &program, const std::string &text, const Spec &spec, Phase phase,
              const std::vector<oracle::Sizes> &sizes, const std::vector<oracle::Arrays> &inputs,
              std::vector<Expectation> &expectations) {
  const Operator op = makeOperator(spec, phase);
  for (const ScheduleVariant &form : forms(op, program.target())) {
    const size_t kernel = program.add(op, {form});
    for (size_t i = 0; i < sizes.size(); ++i) {
      program.add(CrossCall{kernel, sizes[i], inputs[i], i % 3 == 1});
      expectations.push_back(
          {fmt::format("{}{}\n{}", text, describeSizes(sizes[i]), form.schedule.text(op)), spec,
           phase});
    }
  }
}

/// All layouts, modes, phases and dtypes; sizes and data are drawn.
void addLayouts(CrossProgram &program, const char *cpu, std::vector<Expectation> &expectations) {
  std::mt19937_64 random(testSeed());
  size_t turn = testSeed() % 105;
  for (const Shape &shape : layoutShapes())
    for (const Kind &kind : kinds({cpu})) {
      ++turn;
      if (!exists(shape, kind) || !isTaken(turn))
        continue;
      const bool isStatic = turn % 4 == 0;
      auto scaled = [&](char letter, int64_t size) { return size * factorOf(shape, kind, letter); };
      auto draw = [&] { return scaled('S', oddSizes[random() % std::size(oddSizes)]); };
      const bool hasSmall = std::string_view(shape.shape).find('M') != std::string_view::npos;
      std::string sizesText = shape.shape;
      if (isStatic)
        sizesText = replaced(replaced(sizesText, 'S', std::to_string(draw())), 'M',
                             std::to_string(scaled('M', 3)));
      const std::string text = layoutYaml(shape, kind, sizesText, turn);
      const Spec spec = specOf(text);
      std::vector<oracle::Sizes> sizes;
      std::vector<oracle::Arrays> inputs;
      for (int i = 0; i < (isStatic ? 2 : 4); ++i) {
        oracle::Sizes &drawn = sizes.emplace_back();
        if (!isStatic) {
          drawn["S"] = draw();
          if (hasSmall)
            drawn["M"] = scaled('M', random() % 2 ? 5 : 1);
        }
        const oracle::Data data[] = {oracle::Data::Normal, oracle::Data::Offset,
                                     oracle::Data::Constant, oracle::Data::Normal};
        // 1e4 deviations are not in the digits of half precision.
        const bool half = byteSize(spec.dtype) == 2;
        inputs.push_back(oracle::drawInputs(spec, kind.phase, drawn, random(),
                                            half ? oracle::Data::Normal : data[i]));
      }
      addCalls(program, text, spec, kind.phase, sizes, inputs, expectations);
    }
}

/// Adds the cases that Keras and PyTorch were given.
void addFrameworks(CrossProgram &program, std::vector<Expectation> &expectations) {
  const auto cases = readFrameworkCases(std::string(NORMFORGE_TEST_DATA_DIR) + "/data/frameworks");
  int added = 0;
  for (const ConformanceCase &item : cases.cases) {
    auto spec = parseSpec(item.spec, item.sourceName);
    if (!spec) { // not built yet
      llvm::consumeError(spec.takeError());
      continue;
    }
    oracle::Arrays given = item.inputs;
    for (Phase phase : item.phases) {
      oracle::Arrays inputs;
      for (const std::string &name : oracle::inputNames(*spec, phase))
        inputs.emplace(name, given.at(name));
      addCalls(program, item.name, *spec, phase, {item.sizes}, {inputs}, expectations);
      for (const auto &[name, exact] : oracle::reference(*spec, phase, item.sizes, inputs)) {
        HostArray array(exact.dtype == DType::Bit ? DType::Bit : spec->dtype, exact.shape);
        for (int64_t i = 0; i < exact.count(); ++i)
          array.set(i, exact.get(i));
        given.emplace(name, std::move(array));
      }
    }
    ++added;
  }
  CHECK(added >= 80);
}

/// Rows and columns beyond the blocks that long sums are made of, and tasks of several chunks.
void addLong(CrossProgram &program, std::vector<Expectation> &expectations) {
  for (const char *input :
       {"shape: [N, 3, 57, 57], layout: nchw", "shape: [N, 57, 57, 20], layout: nhwc",
        "shape: [N, 40, 31, 31], layout: nChw16c", "shape: [N, 3000], layout: nc",
        "shape: [N, 31, 33, 30], layout: nhwc", "shape: [N, 30, 31, 33], layout: nchw",
        "shape: [N, 35, 31, 9], layout: nChw16c", "shape: [N, 5, 7, 300], layout: nhwc"}) {
    const std::string_view shape(input);
    const bool isGroup = shape.find("31, 33") != shape.npos || shape.find("35,") != shape.npos;
    const std::string text = fmt::format("name: long\nsemantics: pytorch\ninput: {{{}}}\naxis: {}\n"
                                         "mode: {}\nphases: [training, backward]\n",
                                         input, "c",
                                         isGroup                 ? "group\ngroups: 5"
                                         : shape.ends_with("nc") ? "1"
                                                                 : "0");
    const Spec spec = specOf(text);
    const oracle::Sizes sizes = {{"N", 3}};
    for (Phase phase : spec.phases)
      addCalls(program, text, spec, phase, {sizes},
               {oracle::drawInputs(spec, phase, sizes, testSeed(), oracle::Data::Offset)},
               expectations);
  }
}

} // namespace

void normforge::test::checkOnEmulator(const char *cpu, const std::vector<std::string> &emulated) {
  if (const std::string why = CrossProgram::whyNot(); !why.empty()) {
    MESSAGE("SKIP: " << why);
    return;
  }
  try {
    CrossProgram program(cpu, NORMFORGE_BUILD_DIR "/cross/" + std::string(cpu));
    std::vector<Expectation> expectations;
    addLayouts(program, cpu, expectations);
    addFrameworks(program, expectations);
    addLong(program, expectations);
    program.build();
    std::vector<std::vector<oracle::Arrays>> results;
    for (const std::string &machine : emulated) {
      INFO("NORMFORGE_TEST_SEED=", testSeed(), " build/bin/test_cross, ", std::string(cpu), " on ",
           machine);
      results.push_back(program.run(machine, testSeed()));
      REQUIRE(results.back().size() == expectations.size());
      for (size_t i = 0; i < expectations.size(); ++i) {
        INFO(expectations[i].what);
        const CrossCall &call = program.calls()[i];
        const std::string wrong = wrongOutputs(expectations[i].spec, expectations[i].phase,
                                               call.sizes, call.inputs, results.back()[i]);
        CHECK_MESSAGE(wrong.empty(), wrong);
      }
    }
    CHECK(expectations.size() > 500);
  } catch (const std::exception &error) {
    FAIL_CHECK(std::string(error.what()));
  }
}
