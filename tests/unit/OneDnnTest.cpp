// The f64 reference and oneDNN agree wherever oneDNN can compute a spec.

#include "compiler/oracle/Oracle.h"

#include "llvm/Support/Error.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace normforge;
using namespace normforge::oracle;

namespace {

Spec specOf(const std::string &text) {
  auto spec = parseSpec(text, "test.yaml");
  if (!spec)
    FAIL("the test's spec is wrong: " << llvm::toString(spec.takeError()));
  return *spec;
}

/// Compares every output of `oneDnn` with the reference; y always, the
/// statistics in training.
void checkOutputs(OneDnn &oneDnn, const Spec &spec, Phase phase, const Arrays &in,
                  const Numbers &scalars = {}) {
  const Arrays expected = reference(spec, phase, {}, in, scalars);
  const auto tolerances = oneDnnTolerances(spec, phase, {}, in, scalars);
  oneDnn.run();
  oneDnn.run(); // a second run computes the same: no argument is changed
  const Arrays actual = oneDnn.outputs();
  CHECK(actual.size() == (phase == Phase::Training ? 3 : 1));
  for (const auto &[name, array] : actual) {
    REQUIRE(array.shape == expected.at(name).shape);
    const Tolerance &allowed = tolerances.at(name);
    const Comparison result = compare(array, expected.at(name), allowed);
    INFO(name, " at ", result.worst, ": ", result.actual, " and ", result.expected, ", ",
         result.largestExcess, " of the allowed");
    CHECK(result.agrees());
  }
  CHECK(!oneDnn.implementation().empty());
}

struct Problem {
  const char *shape, *letters, *axis;
};

} // namespace

TEST_CASE("oneDNN: modes 0 and 2 in every layout") {
  const Problem layouts[] = {
      {"7, 37", "nc", "c"}, // named layouts
      {"3, 5, 11", "ncw", "c"},
      {"3, 11, 5", "nwc", "c"},
      {"2, 19, 5, 3", "nchw", "c"},
      {"2, 5, 3, 19", "nhwc", "c"},
      {"2, 5, 3, 64", "nhwc", "c"},
      {"2, 17, 2, 3, 5", "ncdhw", "c"},
      {"2, 2, 3, 5, 17", "ndhwc", "c"},
      {"2, 20, 7", "nCw16c", "c"}, // blocked
      {"2, 20, 7", "nCw8c", "c"},
      {"2, 32, 3, 5", "nChw16c", "c"},
      {"2, 33, 3, 5", "nChw16c", "c"},
      {"2, 33, 3, 5", "nChw8c", "c"},
      {"1, 8, 4, 4", "nChw8c", "c"},
      {"3, 40, 4, 4", "nChw8c", "c"},
      {"2, 20, 2, 3, 5", "nCdhw16c", "c"},
      {"4, 20", "nC16c", "c"},
      {"6, 2, 5", "cnw", "c"}, // merged to [1, C, S]
      {"6, 2, 5, 3", "tnhw", "[t, n]"},
      {"2, 5, 3, 4", "nchw", "[c, h]"},    // [N, C, S]
      {"2, 5, 3, 4", "nchw", "[h, w]"},    // [N, C]
      {"2, 3, 2, 3, 2, 4", "ntdhwc", "c"}, // rank 6
  };
  for (const Problem &layout : layouts)
    for (const char *fuse : {"", "relu", "add", "add, relu", "relu, add"})
      for (int mode : {0, 2})
        for (Phase phase : {Phase::Inference, Phase::Training}) {
          const std::string text = std::string("input: {shape: [") + layout.shape +
                                   "], layout: " + layout.letters + "}\naxis: " + layout.axis +
                                   "\nmode: " + std::to_string(mode) +
                                   "\nphases: [inference, training]\nfuse: [" + fuse + "]\n";
          INFO(text, toString(phase));
          const Spec spec = specOf(text);
          const Arrays in = drawInputs(spec, phase, {}, 3);
          std::string whyNot;
          const auto oneDnn = OneDnn::create(spec, phase, {}, in, {}, 2, whyNot);
          INFO(whyNot);
          REQUIRE(oneDnn);
          INFO(oneDnn->implementation(), ": ", oneDnn->notes());
          checkOutputs(*oneDnn, spec, phase, in);
        }
}

TEST_CASE("oneDNN: mode 1 through layer normalization and through the "
          "transposed problem") {
  const Problem layouts[] = {
      {"7, 37", "nc", "c"},
      {"2, 3, 64", "ntc", "c"},
      {"2, 3, 5, 9", "nhwc", "[w, c]"},
      {"4, 6", "nc", "[n, c]"},
      {"2, 3, 4, 5", "nchw", "[c, h, w]"},
      {"37, 5", "cn", "c"},
      {"2, 37, 3, 5", "nchw", "c"}, // transposed: not adjacent
  };
  for (const Problem &layout : layouts)
    for (const char *fuse : {"", "relu", "add, relu"})
      for (Phase phase : {Phase::Inference, Phase::Training}) {
        const std::string text = std::string("semantics: pytorch\ninput: {shape: [") +
                                 layout.shape + "], layout: " + layout.letters +
                                 "}\naxis: " + layout.axis +
                                 "\nmode: 1\nphases: [inference, training]\nfuse: [" + fuse + "]\n";
        INFO(text, toString(phase));
        const Spec spec = specOf(text);
        const Arrays in = drawInputs(spec, phase, {}, 3);
        std::string whyNot;
        const auto direct = OneDnn::create(spec, phase, {}, in, {}, 2, whyNot);
        INFO(whyNot);
        REQUIRE(direct);
        INFO(direct->implementation());
        checkOutputs(*direct, spec, phase, in);

        const auto transposed = OneDnn::createTransposed(spec, phase, {}, in, {}, 2, whyNot);
        const bool adjacent = std::string(layout.letters) != "nchw" || spec.axes.size() > 1;
        REQUIRE((transposed != nullptr) == adjacent);
        if (transposed)
          checkOutputs(*transposed, spec, phase, in);
        else
          CHECK(whyNot.find("not adjacent") != std::string::npos);
      }
}

TEST_CASE("oneDNN: center, scale, data far from 0, threads, epsilon at the call") {
  for (const char *parameters :
       {"center: false\n", "scale: false\n", "center: false\nscale: false\n"})
    for (const char *mode : {"mode: 0\n", "mode: 1\n"})
      for (Data data : {Data::Normal, Data::Offset, Data::Constant, Data::Outlier})
        for (int threads : {1, 2}) {
          const Spec spec = specOf(std::string("semantics: pytorch\n"
                                               "input: {shape: [40, 18], layout: nc}\n"
                                               "axis: c\nepsilon: argument\n"
                                               "phases: [inference, training]\n") +
                                   parameters + mode);
          const Arrays in = drawInputs(spec, Phase::Training, {}, 5, data);
          const Numbers scalars{{"epsilon", 0.25}};
          std::string whyNot;
          const auto oneDnn =
              OneDnn::create(spec, Phase::Training, {}, in, scalars, threads, whyNot);
          INFO(whyNot, parameters, mode, toString(data));
          REQUIRE(oneDnn);
          checkOutputs(*oneDnn, spec, Phase::Training, in, scalars);
        }
}

TEST_CASE("oneDNN: NaN stays in its channel; behind relu it may be 0") {
  for (const char *layout : {"2, 18, 3, 5], layout: nchw", "2, 3, 5, 18], layout: nhwc",
                             "2, 18, 3, 5], layout: nChw16c"})
    for (Phase phase : {Phase::Inference, Phase::Training}) {
      const Spec spec = specOf(std::string("input: {shape: [") + layout +
                               "}\naxis: c\nphases: [inference, training]\nfuse: [relu]\n");
      Arrays in = drawInputs(spec, phase, {}, 3);
      in.at("x").set(0, std::numeric_limits<double>::quiet_NaN()); // of channel 0
      const Arrays expected = reference(spec, phase, {}, in);
      std::string whyNot;
      const auto oneDnn = OneDnn::create(spec, phase, {}, in, {}, 2, whyNot);
      REQUIRE(oneDnn);
      oneDnn->run();
      const Tolerance allowed = oneDnnTolerances(spec, phase, {}, in).at("y");
      const Comparison result = compare(expected.at("y"), oneDnn->outputs().at("y"), allowed);
      INFO(layout, " ", toString(phase), " ", oneDnn->implementation(), " at ", result.worst, ": ",
           result.actual, " and ", result.expected);
      CHECK(std::isnan(expected.at("y").get(0)));
      CHECK(result.agrees());
    }
}

TEST_CASE("oneDNN: what it does not check is said") {
  const Spec spec = specOf("semantics: pytorch\ninput: {shape: [2, 3, 4], layout: ncw}\naxis: c\n"
                           "phases: [training]\nfuse: [add, relu]\n");
  const Arrays in = drawInputs(spec, Phase::Training, {}, 1);
  std::string whyNot;
  const auto oneDnn = OneDnn::create(spec, Phase::Training, {}, in, {}, 1, whyNot);
  REQUIRE(oneDnn);
  CHECK(oneDnn->notes() == "add, relu: a second primitive of oneDNN; moving_mean, moving_variance "
                           "(bessel correction): not in oneDNN, checked with the f64 reference "
                           "alone");
  CHECK(oneDnnVersion().find('.') != std::string::npos);
}

TEST_CASE("oneDNN: what it cannot compute has a reason") {
  const auto reason = [](const std::string &text) {
    const Spec spec = specOf(text);
    const Arrays in = drawInputs(spec, Phase::Training, {{"N", 0}}, 1);
    std::string whyNot;
    CHECK(!OneDnn::create(spec, Phase::Training, {{"N", 0}}, in, {}, 1, whyNot));
    return whyNot;
  };
  CHECK(reason("input: {shape: [2, 3], layout: nc, dtype: f64}\nphases: "
               "[training]\n") == "oneDNN has no f64 normalization on CPUs");
  CHECK(reason("input: {shape: [2, 3], layout: nc}\nmode: 1\nphases: "
               "[training]\n") == "oneDNN's epsilon is inside the root alone");
  CHECK(reason("input: {shape: [N, 3], layout: nc}\nphases: [training]\n") ==
        "there are no elements");
  CHECK(reason("input: {shape: [2, 3, 4, 5], layout: nchw}\naxis: [c, "
               "w]\nphases: [training]\n")
            .find("not adjacent in memory") != std::string::npos);
  CHECK(reason("semantics: pytorch\ninput: {shape: [2, 20, 3, 4], layout: "
               "nChw16c}\naxis: c\n"
               "mode: 1\nphases: [training]\n") ==
        "oneDNN's layer normalization has no blocked layouts");
}
