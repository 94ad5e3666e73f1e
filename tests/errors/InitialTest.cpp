// Initial values at the command line: made by `run --phase initialize`, or within a kernel.
#include "tests/errors/CommandFolder.h"

using namespace normforge;
using namespace normforge::test;

TEST_CASE("run makes what a layer begins with") {
  const Folder folder;
  folder.write("begins.yaml", "semantics: tf-keras\ninput: {shape: [N, C], layout: nc}\naxis: c\n"
                              "phases: [inference, initialize]\nparameters:\n"
                              "  gamma: {initializer: normal}\n  beta: {value: here.npy}\n"
                              "  moving_mean: {value: nowhere.npy}\n");
  folder.array("here.npy", {5}, 3);
  const std::vector<std::string> run{"run",         "begins.yaml", "--phase", "initialize", "-o",
                                     "gamma=g.npy", "--seed",      "7",       "--size",     "C=5"};
  const Outcome outcome =
      folder.run(with(run, {"-o", "beta=b.npy", "-o", "moving_variance=v.npy"}));
  CHECK(outcome.err == "");
  REQUIRE(outcome.status == 0);
  CHECK(folder.read("g.npy").shape == std::vector<int64_t>{5});
  const HostArray beta = folder.read("b.npy"), given = folder.read("here.npy");
  for (int64_t i = 0; i < 5; ++i) {
    CHECK(folder.read("v.npy").get(i) == 1);
    CHECK(beta.get(i) == given.get(i));
  }
  folder.refuses(with(run, {"-o", "moving_mean=m.npy"}),
                 "nowhere.npy: error: cannot be read: No such file or directory");
  folder.refuses(
      {"run", "begins.yaml", "--phase", "initialize", "-o", "beta=c.npy", "--size", "C=6"},
      "normforge: error: beta has shape (6), and the array of here.npy (5)");
  folder.refuses({"run", "begins.yaml", "--phase", "initialize", "-o", "beta=c.npy"},
                 "normforge: error: no value for size C, which beta has");
  folder.refuses(with(run, {"x=here.npy"}),
                 "normforge: error: phase initialize of begins.yaml takes "
                 "no arrays and numbers; found x=here.npy");
  folder.refuses(
      with(run, {"-o", "y=y.npy"}),
      "normforge: error: -o: phase initialize of begins.yaml has no output 'y'; it writes "
      "gamma, beta, moving_mean, moving_variance");
  folder.refuses(
      {"run", "begins.yaml", "--phase", "initialize"},
      "normforge: error: no output is named with -o NAME=FILE.npy; it writes gamma, beta, "
      "moving_mean, moving_variance");
  folder.refuses(
      {"run", "bn.yaml", "--phase", "initialize", "-o", "gamma=g.npy"},
      "normforge: error: --phase: 'initialize' is none of the phases of bn.yaml: inference, "
      "training");
  folder.refuses({"run", "begins.yaml", "--seed", "7", "-o", "y=y.npy"},
                 "normforge: error: --seed belongs to --phase initialize");
  folder.refuses({"run", "begins.yaml", "--phase", "initialize", "-o", "gamma=c.npy", "--size",
                  "C=4611686018427387904"},
                 "normforge: error: the bytes of gamma do not fit in 63 bits");
  folder.refuses(
      with(run, {"--threads", "2"}),
      "normforge: error: --threads: phase initialize of begins.yaml has no kernel that it "
      "could be of");
  folder.refuses({"explain", "begins.yaml", "--phase", "initialize"},
                 "normforge: error: --phase: initialize has no kernel; `normforge run` does it");
}

TEST_CASE("weights win over parameters, and what does nothing is said") {
  const Folder folder;
  folder.write("weights.yaml", "input: {shape: [N, 1], layout: nc}\naxis: c\ncenter: false\n"
                               "phases: [inference, initialize]\nweights: [1, 2, 3, 4]\n"
                               "parameters: {gamma: {value: 5}}\n");
  const Outcome outcome = folder.run({"explain", "weights.yaml"});
  CHECK(contains(outcome.out + outcome.err,
                 "parameters.gamma.value has no effect: weights win over it"));
  CHECK(contains(outcome.out + outcome.err, "weights[1] has no effect: the layer has none"));
}

TEST_CASE("values of files are read beside the spec, into kernels of inference alone") {
  const Folder folder;
  const std::string text = "semantics: pytorch\ninput: {shape: [N, 2], layout: nc}\nepsilon: 5\n"
                           "parameters: {gamma: {value: [24, 2]}, beta: {value: offset.npy}, "
                           "moving_mean: {value: 0}, moving_variance: {value: [20, 11]}}\n";
  folder.write("inside.yaml", text);
  const std::string caret =
      "\n" + text.substr(text.find("parameters")) + std::string(52, ' ') + "^";
  folder.array("in.npy", {1, 2}, 5);
  folder.refuses(
      {"run", "inside.yaml", "x=in.npy", "-o", "y=out.npy"},
      "inside.yaml:4:53: error: parameters.beta.value: offset.npy: error: cannot be read: "
      "No such file or directory" +
          caret);
  folder.array("offset.npy", {3}, 1);
  folder.refuses(
      {"explain", "inside.yaml"},
      "inside.yaml:4:53: error: parameters.beta.value: beta has shape (2), and the array "
      "of offset.npy (3)" +
          caret);
  folder.array("offset.npy", {2}, 1);
  folder.refuses({"run", "inside.yaml", "x=in.npy", "gamma=offset.npy", "-o", "y=out.npy"},
                 "normforge: error: phase inference of inside.yaml takes no 'gamma', whose values "
                 "(parameters.gamma.value) are in the kernel; it reads the arrays x");
  // 5/5*24 + 1 and 5/4*2 + 1.
  CHECK(folder.run({"run", "inside.yaml", "x=in.npy", "-o", "y=out.npy"}).status == 0);
  const auto y = llvm::cantFail(readNpy((folder.path() / "out.npy").string()));
  CHECK(y.get(0) == doctest::Approx(25));
  CHECK(y.get(1) == doctest::Approx(3.5));
  CHECK(contains(folder.run({"explain", "inside.yaml"}).out, "within   beta"));
}
