// `normforge check SPEC x=x.npy ... y=mine.npy`: own data, and own results.
#include "tests/errors/CommandFolder.h"

#include <doctest/doctest.h>

using namespace normforge;
using namespace normforge::test;

namespace {

/// check's words for bn.yaml, and more.
std::vector<std::string> words(std::vector<std::string> more) {
  std::vector<std::string> all{"check",
                               "bn.yaml",
                               "x=x.npy",
                               "gamma=gamma.npy",
                               "beta=beta.npy",
                               "moving_mean=mean.npy",
                               "moving_variance=variance.npy"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

const std::string reads = "it reads the arrays x, gamma, beta, moving_mean, moving_variance";

} // namespace

TEST_CASE("check of own data agrees, and says how far own results are off") {
  const Folder folder;
  CHECK(folder
            .run({"run", "bn.yaml", "x=x.npy", "gamma=gamma.npy", "beta=beta.npy",
                  "moving_mean=mean.npy", "moving_variance=variance.npy", "--phase", "training",
                  "-o", "y=y.npy", "-o", "moving_mean=next.npy"})
            .status == 0);
  Outcome outcome =
      folder.run(words({"--phase", "training", "y=y.npy", "new.moving_mean=next.npy"}));
  CHECK(outcome.err == "");
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "own data, "));
  CHECK(contains(outcome.out, "N=2")); // x tells it
  CHECK(contains(outcome.out, "y.npy: y is off by "));
  CHECK(contains(outcome.out, "next.npy: moving_mean is off by "));
  CHECK(contains(outcome.out, "1 of 1 agree."));

  HostArray y = folder.read("y.npy");
  y.set(7, y.get(7) + 0.01);
  REQUIRE(!writeNpy((folder.path() / "wrong.npy").string(), y));
  outcome = folder.run(words({"--phase", "training", "y=wrong.npy"}));
  CHECK(outcome.status == 1);
  CHECK(contains(outcome.out, "y of wrong.npy"));
  CHECK(contains(outcome.out, "DISAGREES"));
  CHECK(contains(outcome.out, "element 7 is "));
  CHECK(contains(outcome.out, "x=x.npy gamma=gamma.npy beta=beta.npy moving_mean=mean.npy "
                              "moving_variance=variance.npy y=wrong.npy --verbose"));
  outcome = folder.run(words({"--phase", "training", "--json"}));
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "\"data\":\"own\""));
  CHECK(!contains(outcome.out, "\"seed\""));
}

TEST_CASE("check refuses own data that are not all of one phase's") {
  const Folder folder;
  folder.refuses({"check", "bn.yaml", "x=x.npy"},
                 "normforge: error: phase inference of bn.yaml needs gamma, beta, moving_mean, "
                 "moving_variance, which are not given; " +
                     reads);
  folder.refuses(words({"z=x.npy"}), "normforge: error: phase inference of bn.yaml takes no 'z'; " +
                                         reads + ", and it writes y");
  folder.refuses(words({"new.y=x.npy"}),
                 "normforge: error: phase inference of bn.yaml takes no 'new.y'; " + reads +
                     ", and it writes y");
  folder.refuses(words({"y=x.npy", "y=x.npy"}), "normforge: error: argument y is given twice");
  folder.refuses(words({"y=gamma.npy"}),
                 "gamma.npy: error: argument y takes shape (2, 3, 2, 2), found (3)");
  folder.refuses(words({"--seed", "1"}),
                 "normforge: error: x=x.npy is own data, and none are drawn; leave out --data, "
                 "--seed and --adversarial, or it");
  folder.refuses(words({"sized.yaml"}),
                 "normforge: error: x=x.npy is data of one spec; 2 are given");
  folder.refuses(
      words({"--size", "N=3"}),
      "normforge: error: size N is 3 by --size and 2 by x (x.npy of shape (2, 3, 2, 2))");
  folder.refuses({"check", "x=x.npy"}, "normforge: error: SPEC is required");
}
