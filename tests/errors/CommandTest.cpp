// The command `normforge` as its users meet it: exit status, both streams, and the files it leaves.
#include "compiler/cli/Npz.h"
#include "compiler/session/Session.h"
#include "runtime/cache/DiskCache.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "tests/errors/CommandFolder.h"

#include "llvm/Support/JSON.h"

#include <cmath>

using namespace normforge;
using namespace normforge::test;

namespace {

const std::string reads = "it reads the arrays x, gamma, beta, moving_mean, moving_variance";

} // namespace

// ---- Bad input ----------------------------------------------------------------------------------

TEST_CASE("run refuses arrays that are not what the phase takes") {
  const Folder folder;
  SUBCASE("dtype") {
    folder.array("x64.npy", {2, 3, 2, 2}, 1, DType::F64);
    folder.refuses(runWords({"-o", "y=y.npy"}, "x64.npy"),
                   "x64.npy: error: argument x takes f32, found f64; save it with "
                   ".astype(\"float32\"), or write 'dtype: f64' in the spec");
  }
  SUBCASE("shape of numbers") {
    folder.array("wide.npy", {4}, 1);
    folder.refuses(runWords({"-o", "y=y.npy"}, "x.npy", "wide.npy"),
                   "wide.npy: error: argument gamma takes shape (3), found (4)");
  }
  SUBCASE("shape with a named size") {
    folder.array("tall.npy", {2, 3, 2, 5}, 1);
    folder.refuses(runWords({"-o", "y=y.npy"}, "tall.npy"),
                   "tall.npy: error: argument x takes shape (N, 3, 2, 2), found "
                   "(2, 3, 2, 5)");
  }
  SUBCASE("a size that --size contradicts") {
    folder.refuses(runWords({"--size", "N=3", "-o", "y=y.npy"}),
                   "normforge: error: size N is 3 by --size and 2 by x (x.npy of shape "
                   "(2, 3, 2, 2))");
  }
  SUBCASE("two arrays that contradict each other") {
    folder.write("sum.yaml", "name: sum\ninput: {shape: [N, 3], layout: nc}\naxis: c\nmode: 2\n"
                             "center: false\nscale: false\nfuse: [add]\n");
    folder.array("a.npy", {4, 3}, 1);
    folder.array("b.npy", {5, 3}, 1);
    folder.refuses({"run", "sum.yaml", "x=a.npy", "addend=b.npy", "-o", "y=y.npy"},
                   "normforge: error: size N is 4 by x (a.npy of shape (4, 3)) and 5 by addend "
                   "(b.npy of shape (5, 3))");
  }
  SUBCASE("truncated") {
    const std::string whole = slurp(folder.path() / "x.npy");
    folder.write("short.npy", whole.substr(0, whole.size() - 10));
    folder.refuses(runWords({"-o", "y=y.npy"}, "short.npy"),
                   "short.npy: error: expected 96 bytes of data for shape (2, 3, 2, 2) of f32, "
                   "found 86: the file is truncated");
  }
  SUBCASE("a directory, a missing file, something else") {
    folder.refuses(runWords({"-o", "y=y.npy"}, "folder"),
                   "folder: error: expected an .npy file, found a directory");
    folder.refuses(runWords({"-o", "y=y.npy"}, "none.npy"),
                   "none.npy: error: cannot be read: No such file or directory");
    folder.refuses(runWords({"-o", "y=y.npy"}, "bn.yaml"),
                   "bn.yaml: error: expected an .npy file, which starts with \\x93NUMPY; found "
                   "other bytes");
  }
}

TEST_CASE("run refuses arguments that the phase does not take, and lists what it takes") {
  const Folder folder;
  folder.refuses({"run", "bn.yaml", "x=x.npy", "gamma=gamma.npy", "moving_mean=mean.npy",
                  "moving_variance=variance.npy", "-o", "y=y.npy"},
                 "normforge: error: phase inference of bn.yaml needs beta, which is not given; " +
                     reads);
  folder.refuses(runWords({"dy=x.npy", "-o", "y=y.npy"}),
                 "normforge: error: phase inference of bn.yaml takes no 'dy'; " + reads);
  for (auto [theirs, ours] : {std::pair{"weight", "gamma"},
                              {"bias", "beta"},
                              {"B", "beta"},
                              {"scale", "gamma"},
                              {"running_var", "moving_variance"}})
    folder.refuses(runWords({std::string(theirs) + "=x.npy", "-o", "y=y.npy"}),
                   "normforge: error: phase inference of bn.yaml takes no '" + std::string(theirs) +
                       "', here '" + ours + "'; " + reads);
  folder.refuses(runWords({"x=x.npy", "-o", "y=y.npy"}),
                 "normforge: error: argument x is given twice");
  folder.refuses(runWords({"x", "-o", "y=y.npy"}),
                 "normforge: error: expected NAME=FILE.npy or NAME=NUMBER, found 'x'");
  folder.refuses({"run", "late.yaml", "x=x.npy", "gamma=gamma.npy", "beta=beta.npy",
                  "moving_mean=mean.npy", "moving_variance=variance.npy", "-o", "y=y.npy"},
                 "normforge: error: phase inference of late.yaml needs epsilon, which is not "
                 "given; " +
                     reads + " and the numbers epsilon");
  folder.refuses({"run", "late.yaml", "x=x.npy", "gamma=gamma.npy", "beta=beta.npy",
                  "moving_mean=mean.npy", "moving_variance=variance.npy", "epsilon=small", "-o",
                  "y=y.npy"},
                 "normforge: error: epsilon: expected a number, found 'small'");
}

TEST_CASE("run refuses outputs that cannot be, before anything is written") {
  const Folder folder;
  folder.refuses(runWords(),
                 "normforge: error: no output is named with -o NAME=FILE.npy; it writes y");
  folder.refuses(runWords({"-o", "y=y.npy", "-o", "z=z.npy"}),
                 "normforge: error: -o: phase inference of bn.yaml has no output 'z'; it writes y");
  folder.refuses(runWords({"-o", "y=folder"}),
                 "folder: error: expected a file to write, found a directory");
  folder.refuses(runWords({"--phase", "training", "-o", "y=same.npy", "-o", "batch_mean=same.npy"}),
                 "normforge: error: -o: same.npy is named for two outputs");
  folder.refuses(
      runWords({"--phase", "training", "-o", "y=same.npy", "-o", "batch_mean=./same.npy"}),
      "normforge: error: -o: ./same.npy is named for two outputs");
  folder.refuses(runWords({"-o", "y=/dev/null"}),
                 "/dev/null: error: expected a file to write, found a device or pipe");
  // The first output could be written; it is not, because the second cannot.
  folder.refuses(
      runWords({"--phase", "training", "-o", "batch_mean=m.npy", "-o", "y=nowhere/y.npy"}),
      "nowhere/y.npy: error: cannot be written: No such file or directory");
}

TEST_CASE("CPUs, phases, sizes and other options are checked") {
  const Folder folder;
  const std::string cpus = fmt::format("{}", fmt::join(compilableCpus(), ", "));
  for (const char *command : {"check", "explain"})
    folder.refuses({command, "bn.yaml", "--cpu", "z80"},
                   "normforge: error: --cpu: unknown CPU 'z80'; expected native or one of: " +
                       cpus);
  folder.refuses({"compile", "bn.yaml", "--emit=asm", "--cpu", "z80"},
                 "normforge: error: --cpu: unknown CPU 'z80'; expected native or one of: " + cpus);
  folder.refuses(runWords({"-o", "y=y.npy", "--cpu", "z80"}),
                 "normforge: error: --cpu: unknown CPU 'z80'; expected native or one of: " + cpus);

  folder.refuses({"check", "sized.yaml"},
                 "normforge: error: sized.yaml: no value for size H, W; give it with --size "
                 "H=VALUE (named sizes of this spec: N, H, W)");
  folder.refuses({"check", "bn.yaml", "--size", "M=3"},
                 "normforge: error: --size: no spec given has a size 'M'; the named sizes are N");
  folder.refuses({"explain", "bn.yaml", "--size", "M=3"},
                 "normforge: error: --size: bn.yaml has no size 'M'; it has N");
  folder.refuses({"check", "bn.yaml", "--size", "N=0"},
                 "normforge: error: --size: expected NAME=VALUE with a whole number from 1 to "
                 "2^63 - 1, found 'N=0'");
  folder.refuses({"check", "bn.yaml", "--size", "N=1", "--size", "N=2"},
                 "normforge: error: --size: N is given twice");
  folder.refuses({"check", "bn.yaml", "--size", "N=9000000000000000000"},
                 "normforge: error: bn.yaml: sizes are too large: the bytes of 'x' do not fit in "
                 "63 bits");

  folder.refuses(
      {"check", "bn.yaml", "--phase", "initialize"},
      "normforge: error: --phase: expected inference, training, backward, population, update, "
      "backward+update, moments or gradient_sums, found 'initialize'");
  folder.refuses({"check", "sized.yaml", "--phase", "update"},
                 "normforge: error: --phase: no spec given has phase update");
  folder.refuses(runWords({"-o", "y=y.npy", "--phase", "backward"}),
                 "normforge: error: --phase: 'backward' is none of the phases of bn.yaml: "
                 "inference, training");
  folder.refuses({"check", "bn.yaml", "--threads", "0"},
                 "normforge: error: --threads: expected a whole number from 1 to 1024, found '0'");
  folder.refuses({"check", "bn.yaml", "--data", "nice"},
                 "normforge: error: --data: expected normal, offset, constant, outlier, "
                 "denormal or large, found 'nice'");
  folder.refuses({"check", "bn.yaml", "--seed", "-1"},
                 "normforge: error: --seed: expected a whole number from 0 to "
                 "18446744073709551615, found '-1'");
  folder.refuses(
      {"compile", "bn.yaml"},
      "normforge: error: --emit is missing: expected a stage of the compilation (linalg, "
      "scheduled, vector, llvm-mlir, llvm, asm, ptx, cubin), or kinds of files (obj, so, asm, "
      "header, manifest)");
  folder.refuses(
      {"compile", "bn.yaml", "--emit=wasm"},
      "normforge: error: --emit: expected a stage of the compilation (linalg, scheduled, "
      "vector, llvm-mlir, llvm, asm, ptx, cubin), or kinds of files (obj, so, asm, header, "
      "manifest), found 'wasm'");
  folder.refuses({"compile", "bn.yaml", "--emit=vector", "-o", "folder"},
                 "folder: error: expected a file to write, found a directory");
  folder.refuses({}, "normforge: error: A subcommand is required; normforge --help lists what it "
                     "takes");
  folder.refuses({"check"}, "normforge: error: SPEC is required; normforge check --help lists what "
                            "it takes");
}

TEST_CASE("specs that cannot be read, and directories without any") {
  const Folder folder;
  folder.refuses({"explain", "none.yaml"},
                 "none.yaml: error: cannot be read: No such file or directory");
  folder.refuses({"check", "folder"},
                 "folder: error: expected specs in this directory, found no *.yaml file");
  // All specs are read before any is run, and each error is shown.
  folder.write("folder/a.yaml", "input: {shape: [0], layout: c}\n");
  folder.write("folder/b.yaml", "input: {shape: [N, 3], layout: nc}\naxis: c\n");
  const Outcome outcome = folder.run({"check", "folder", "bn.yaml"});
  CHECK(outcome.status == 2);
  CHECK(outcome.out == "");
  CHECK(contains(outcome.err, "folder/a.yaml:1:17: error: "));
}

TEST_CASE("an output that is a symbolic link stays one") {
  const Folder folder;
  folder.array("target.npy", {1}, 0);
  fs::create_symlink("target.npy", folder.path() / "link.npy");
  REQUIRE(folder.run(runWords({"-o", "y=link.npy"})).status == 0);
  CHECK(fs::is_symlink(folder.path() / "link.npy"));
  CHECK(folder.read("target.npy").count() == 24);
}

TEST_CASE("compile --time prints a row for each variant") {
  const Folder folder;
  const Outcome outcome = folder.run({"compile", "bn.yaml", "--time"});
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "codegen"));
  CHECK(contains(outcome.out, "\nfirst "));
  CHECK(contains(outcome.out, "\nvariant 1 of "));
  folder.refuses({"compile", "bn.yaml", "--time", "--emit=asm"},
                 "normforge: error: --time prints times; leave out --emit and -o, or --time");
}

TEST_CASE("unknown commands and empty words are named") {
  const Folder folder;
  folder.refuses(
      {"chek", "bn.yaml"},
      "normforge: error: unknown command 'chek'; expected one of "
      "check, compile, pack, roofline, tune, run, convert, import, explain, targets, cache, help");
  folder.refuses({"check", ""}, "normforge: error: argument 2 is empty");
  folder.refuses({"check", "bn.yaml", "--threads="}, "normforge: error: --threads has no value");
}

// ---- Good runs ----------------------------------------------------------------------------------

TEST_CASE("run computes what the formula says") {
  const Folder folder;
  // variance.npy has axes of size 1 around its 3.
  const Outcome outcome = folder.run(runWords({"-o", "y=y.npy"}));
  CHECK(outcome.err == "");
  CHECK(outcome.out == "");
  REQUIRE(outcome.status == 0);
  const HostArray y = folder.read("y.npy");
  CHECK(y.shape == std::vector<int64_t>{2, 3, 2, 2});
  for (int64_t i = 0; i < y.count(); ++i) // sqrt(0.999 + 0.001) is 1
    CHECK(y.get(i) == doctest::Approx(2.0 * static_cast<double>(1 + i) + 0.5).epsilon(1e-5));
}

TEST_CASE("run takes the moving statistics in and gives them out by the same names") {
  const Folder folder;
  const Outcome outcome =
      folder.run(runWords({"--phase", "training", "--threads", "2", "-o", "moving_mean=mean.npy",
                           "-o", "batch_mean=batch.npy"}));
  CHECK(outcome.err == "");
  REQUIRE(outcome.status == 0);
  const HostArray batch = folder.read("batch.npy"), moving = folder.read("mean.npy");
  CHECK(moving.shape == std::vector<int64_t>{3});
  for (int64_t c = 0; c < 3; ++c) {
    // Channel c holds 1 + 4c + i and the same 12 further on, for i of 0 to 3.
    const double mean = 1 + 4 * static_cast<double>(c) + 1.5 + 6;
    CHECK(batch.get(c) == doctest::Approx(mean).epsilon(1e-6));
    CHECK(moving.get(c) == doctest::Approx(0.01 * mean).epsilon(1e-5));
  }
}

TEST_CASE("run writes the bits of training that backward reads") {
  const Folder folder;
  folder.write("bits.yaml", "name: bits\n"
                            "input: {shape: [N, 2, 2, 3], layout: nhwc}\n"
                            "axis: c\n"
                            "phases: [training, backward]\n"
                            "fuse: [add, relu]\n");
  folder.array("x.npy", {2, 2, 2, 3}, 1);
  folder.array("addend.npy", {2, 2, 2, 3}, -12);
  const Outcome training = folder.run(
      {"run", "bits.yaml", "--phase", "training", "x=x.npy", "gamma=gamma.npy", "beta=beta.npy",
       "addend=addend.npy", "moving_mean=mean.npy", "moving_variance=variance.npy", "-o", "y=y.npy",
       "-o", "batch_mean=mu.npy", "-o", "batch_variance=var.npy", "-o", "relu_mask=mask.npy"});
  CHECK(training.err == "");
  REQUIRE(training.status == 0);
  CHECK((folder.read("mask.npy").dtype == DType::Bit));
  const Outcome backward =
      folder.run({"run", "bits.yaml", "--phase", "backward", "x=x.npy", "dy=x.npy",
                  "gamma=gamma.npy", "batch_mean=mu.npy", "batch_variance=var.npy",
                  "relu_mask=mask.npy", "-o", "daddend=daddend.npy"});
  CHECK(backward.err == "");
  REQUIRE(backward.status == 0);
  // The same bits as one run of bytes, as Python's kernels write them.
  HostArray flat = folder.read("mask.npy");
  flat.shape = {flat.count()};
  REQUIRE(!writeNpy((folder.path() / "flat.npy").string(), flat));
  const Outcome again =
      folder.run({"run", "bits.yaml", "--cpu", "native", "x=x.npy", "dy=x.npy", "gamma=gamma.npy",
                  "batch_mean=mu.npy", "batch_variance=var.npy", "relu_mask=flat.npy", "--phase",
                  "backward", "-o", "daddend=again.npy"});
  CHECK(again.err == "");
  CHECK(folder.read("again.npy").bytes == folder.read("daddend.npy").bytes);
  const HostArray y = folder.read("y.npy"), daddend = folder.read("daddend.npy");
  int64_t passed = 0;
  for (int64_t i = 0; i < y.count(); ++i) {
    passed += y.get(i) > 0;
    CHECK(daddend.get(i) == (y.get(i) > 0 ? static_cast<double>(1 + i) : 0));
  }
  CHECK(passed > 4);
  CHECK(passed < y.count() - 4);
}

TEST_CASE("functions of one name") {
  const Folder folder;
  const std::string rest = "input: {shape: [N, 3], layout: nc}\naxis: c\noptimizer: sgd\n";
  folder.write("a.yaml", rest + "phases: [backward+update]\n");
  folder.write("a_backward.yaml", rest + "phases: [update]\n");
  folder.refuses({"compile", "a.yaml", "a_backward.yaml", "--emit", "so,header", "-o", "all.so"},
                 "normforge: error: backward+update of a.yaml and update of a_backward.yaml would "
                 "both be the function a_backward_update; give one of the specs another name");
}

TEST_CASE("run takes numbers of the call, and arrays without their axis of size 1") {
  const Folder folder;
  folder.array("one.npy", {3, 2, 2}, 1); // N is 1
  const Outcome outcome = folder.run(
      {"run", "late.yaml", "x=one.npy", "gamma=gamma.npy", "beta=beta.npy", "moving_mean=mean.npy",
       "moving_variance=variance.npy", "epsilon=3.001", "-o", "y=y.npy"});
  CHECK(outcome.err == "");
  REQUIRE(outcome.status == 0);
  const HostArray y = folder.read("y.npy");
  CHECK(y.shape == std::vector<int64_t>{1, 3, 2, 2});
  for (int64_t i = 0; i < y.count(); ++i) // sqrt(0.999 + 3.001) is 2
    CHECK(y.get(i) == doctest::Approx(static_cast<double>(1 + i) + 0.5).epsilon(1e-5));
}

TEST_CASE("check prints a table without colour or progress into a file") {
  const Folder folder;
  const Outcome outcome = folder.run({"check", "bn.yaml", "--threads", "1", "--seed", "7"});
  CHECK(outcome.status == 0);
  CHECK(outcome.err == "");
  CHECK(outcome.out.rfind("seed 7, normal data, 1 thread, oneDNN ", 0) == 0);
  CHECK(contains(outcome.out, "; N=8 by default\n"));
  CHECK(contains(outcome.out, "bn.yaml  inference  N=8 "));
  CHECK(contains(outcome.out, "bn.yaml  training   N=8 "));
  CHECK(contains(outcome.out, "oneDNN: moving_mean, moving_variance: not in oneDNN"));
  CHECK(contains(outcome.out, "2 of 2 agree.\n"));
  CHECK(!contains(outcome.out, "\033"));
}

TEST_CASE("check --json prints one object a line") {
  const Folder folder;
  for (const char *data : {"normal", "offset", "constant", "outlier", "denormal"}) {
    CAPTURE(data);
    const Outcome outcome =
        folder.run({"check", "bn.yaml", "sized.yaml", "--json", "--size", "N=3", "--size", "H=2",
                    "--size", "W=5", "--seed", "1", "--data", data});
    CHECK(outcome.status == 0);
    CHECK(outcome.err == "");
    std::istringstream lines(outcome.out);
    size_t count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      auto value = llvm::json::parse(line);
      REQUIRE(static_cast<bool>(value));
      const llvm::json::Object *object = value->getAsObject();
      REQUIRE(object);
      CHECK(object->getString("verdict") == "agrees");
      CHECK(object->getString("data") == data);
      CHECK(object->getInteger("seed") == 1);
      CHECK(object->getObject("sizes")->getInteger("N") == 3);
      for (const char *number :
           {"compile_ms", "time_us", "error_reference", "tolerance_reference"}) {
        CAPTURE(number);
        CHECK(object->getNumber(number).has_value());
      }
      CHECK(object->getArray("outputs")->size() == (count == 1 ? 5 : 1));
    }
    CHECK(count == 3);
  }
}

TEST_CASE("compile prints every stage, and writes files whole") {
  const Folder folder;
  const std::pair<const char *, const char *> stages[] = {
      {"linalg", "linalg.generic"}, {"scheduled", "func.func"}, {"vector", "vector."},
      {"llvm-mlir", "llvm.func"},   {"llvm", "define"},         {"asm", ".globl"}};
  for (const auto &[stage, expected] : stages) {
    CAPTURE(stage);
    const Outcome outcome =
        folder.run({"compile", "bn.yaml", std::string("--emit=") + stage, "--cpu", "haswell"});
    CHECK(outcome.status == 0);
    CHECK(outcome.err == "");
    CHECK(contains(outcome.out, expected));
  }
  const Outcome object = folder.run({"compile", "bn.yaml", "--emit=obj", "-o", "bn.o"});
  CHECK(object.status == 0);
  CHECK(object.out == "");
  CHECK(slurp(folder.path() / "bn.o")
            .rfind("\x7f"
                   "ELF",
                   0) == 0);
}

TEST_CASE("variants are printed one after another or one alone") {
  const Folder folder;
  folder.write("large.yaml", "name: large\n"
                             "input: {shape: [N, 8, 112, 112], layout: nchw}\n"
                             "axis: c\n"
                             "phases: [training]\n");
  const Outcome text = folder.run({"compile", "large.yaml", "--emit=asm", "--cpu", "haswell"});
  CHECK(text.status == 0);
  // How many there are is the schedule's affair; here there is more than one.
  CHECK(text.out.rfind("# variant 1 of ", 0) == 0);
  CHECK(contains(text.out, ", when N * "));
  CHECK(contains(text.out, "\n# variant 2 of "));
  CHECK(contains(text.out, ", otherwise: "));

  const Outcome one =
      folder.run({"compile", "large.yaml", "--emit=asm", "--cpu", "haswell", "--variant", "2"});
  CHECK(one.status == 0);
  CHECK(one.out.rfind("# variant 2 of ", 0) == 0);
  CHECK(!contains(one.out, "variant 1 of"));
  folder.refuses({"compile", "large.yaml", "--emit=obj", "--variant", "2", "-o", "large.o"},
                 "normforge: error: --variant: a file holds all variants; leave it out, or print a "
                 "stage");
}

TEST_CASE("roofline prints shares of a copy and what limits a kernel") {
  const Folder folder;
  const std::vector<std::string> words{"roofline", "bn.yaml", "--size", "N=64", "--threads", "1"};
  const Outcome table = folder.run(words);
  CHECK(table.err == "");
  CHECK(table.status == 0);
  CHECK(contains(table.out, "\nbn.yaml  inference  N=64 "));
  CHECK(contains(table.out, "\nbn.yaml  training   N=64 "));
  CHECK(contains(table.out, "limited by"));
  const Outcome json = folder.run(with(words, {"--json", "--phase", "training"}));
  CHECK(json.status == 0);
  auto value = llvm::json::parse(json.out);
  REQUIRE(bool(value));
  const llvm::json::Object *object = value->getAsObject();
  CHECK(object->getInteger("least_bytes") == 64 * 12 * 4 * 2);
  CHECK(*object->getNumber("time_us") > 0);
  CHECK(*object->getNumber("share") ==
        doctest::Approx(*object->getNumber("copy_us") / *object->getNumber("time_us")));
  folder.refuses(with(words, {"--seconds", "0"}),
                 "normforge: error: --seconds: expected a whole number from 1 to 3600, found '0'");
  folder.refuses(with(words, {"--phase", "update"}),
                 "normforge: error: --phase: no spec given has phase update");
}

TEST_CASE("check --variant checks that one at any sizes") {
  const Folder folder;
  const std::vector<std::string> words{"check",  "bn.yaml", "--phase", "training",
                                       "--size", "N=2",     "--json"};
  std::vector<std::string> schedules;
  for (const char *number : {"1", "2"}) {
    const Outcome outcome = folder.run(with(words, {"--variant", number}));
    CHECK(outcome.status == 0);
    auto value = llvm::json::parse(outcome.out);
    REQUIRE(bool(value));
    schedules.push_back(value->getAsObject()->getString("schedule")->str());
  }
  CHECK(schedules[0] != schedules[1]);
  const Outcome none = folder.run(with(words, {"--variant", "99"}));
  CHECK(none.status == 2);
  CHECK(contains(none.err, "--variant: phase training of bn.yaml has "));
  folder.refuses(with(words, {"--variant", "1", "--schedules", "all"}),
                 "normforge: error: --variant is of the schedules that are chosen; leave out "
                 "--schedule and --schedules, or it");
}

TEST_CASE("check --adversarial prints our errors beside oneDNN's") {
  Folder folder;
  folder.write("one.yaml", "input: {shape: [N, 1, 2, 2], layout: nchw}\naxis: c\n");
  const Outcome outcome = folder.run({"check", "--adversarial", "one.yaml", "--seed", "7"});
  CHECK(outcome.status == 0);
  CHECK(outcome.out.find("one.yaml, inference, seed 7; ours and oneDNN") == 0);
  for (const char *row :
       {"mean of 1e4 deviations", "every group constant", "one element of 1e6", "denormals",
        "NaN in one group", "Inf in one group", "least N", "2^24 elements a group"})
    CHECK_MESSAGE(outcome.out.find(std::string("\n") + row) != std::string::npos, row);
  CHECK(outcome.out.find("DISAGREES") == std::string::npos);
  // A formula that takes no NaN of what it does not depend on; parameters of fewer bits; gradients
  // that are 0 but for roundings.
  for (const char *text :
       {"mode: 1\nfuse: [{expr: x * u + v, operands: {u: [c], v: [c]}}]\nphases: [backward]\n",
        "parameter_dtype: bf16\nphases: [training]\n",
        "prologue: [{add: [c]}]\nphases: [backward]\n"}) {
    folder.write("other.yaml",
                 std::string("input: {shape: [13, 32], layout: nc}\naxis: c\n") + text);
    const Outcome other = folder.run({"check", "--adversarial", "other.yaml", "--seed", "1"});
    CHECK_MESSAGE(other.status == 0, other.out);
  }
  CHECK(folder.run({"check", "--adversarial", "bn.yaml", "--json"}).status == 2);
}

TEST_CASE("convert turns saved layers into another framework's, or leaves nothing") {
  const Folder folder;
  const std::string model = std::string(NORMFORGE_TEST_DATA_DIR) + "/data/npz/model.npz";
  const std::vector<std::string> words{"convert", model, "--from", "pytorch", "--to"};
  const Outcome converted = folder.run(with(words, {"tf-keras", "-o", "tf.npz"}));
  CHECK(converted.err == "");
  CHECK(converted.status == 0);
  CHECK(converted.out ==
        "bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var -> bn1.gamma, bn1.beta, "
        "bn1.moving_mean, bn1.moving_variance\n"
        "bn1.num_batches_tracked is left out: tf-keras has none\n"
        "1 array of no layer copied as it is\n"
        "give the layers of tf-keras epsilon 1e-05\n"
        "note: tf.keras's fused kernel takes epsilon 1.001e-5 for 1e-05\n"
        "note: pytorch averages N/(N-1) of the batch's variance, and tf-keras the batch's "
        "variance (N/(N-1) of it where its fused kernel runs): training goes on with an "
        "average of both\n"
        "note: momentum weighs the new value in pytorch and the old one in tf-keras: 0.1 is 0.9\n");
  const Outcome back =
      folder.run({"convert", "tf.npz", "--from", "tf-keras", "--to", "pytorch", "-o", "back.npz"});
  CHECK(back.status == 0);
  auto expected = readNpz(model), found = readNpz((folder.path() / "back.npz").string());
  REQUIRE(bool(expected));
  REQUIRE(bool(found));
  for (const NpzMember &member : *expected) {
    if (member.name == "bn1.num_batches_tracked")
      continue;
    const auto same = std::ranges::find(*found, member.name, &NpzMember::name);
    REQUIRE(same != found->end());
    if (member.name == "conv1.weight") {
      CHECK(same->bytes == member.bytes);
      continue;
    }
    auto one = parseNpy(member.bytes, "a"), other = parseNpy(same->bytes, "b");
    REQUIRE(bool(one));
    REQUIRE(bool(other));
    CHECK(one->bytes == other->bytes);
  }
  const Outcome refused =
      folder.run(with(words, {"keras-1.2", "--to-epsilon", "2", "-o", "no.npz"}));
  CHECK(refused.status == 2);
  CHECK(contains(refused.err, model + ": error: bn1.running_var[0] is 1: pytorch divides by"));
  CHECK(!fs::exists(folder.path() / "no.npz"));
  for (auto [more, message] :
       {std::pair(std::vector<std::string>{"onnx", "-o", "no.npz"},
                  "--to: unknown semantics 'onnx'; did you mean 'onnx-15'?"),
        std::pair(std::vector<std::string>{"keras-3", "--mode", "9", "-o", "no.npz"},
                  "--mode: unknown mode 9"),
        std::pair(std::vector<std::string>{"keras-3\nphases: [training]", "-o", "no.npz"},
                  "--to: unknown semantics 'keras-3"),
        std::pair(std::vector<std::string>{"keras-3", "--from-epsilon", "0", "-o", "no.npz"},
                  "--from-epsilon must be a number above 0; found '0'"),
        std::pair(std::vector<std::string>{"keras-3", "-o", model}, "is the file that is read")}) {
    const Outcome bad = folder.run(with(words, more));
    CHECK(bad.status == 2);
    CHECK(contains(bad.err, message));
  }
  CHECK(!fs::exists(folder.path() / "no.npz"));
}

TEST_CASE("cache lists, verifies and clears") {
  Folder folder;
  const std::string directory = folder.path() / "kernels";
  CHECK(folder.run({"cache", "list", "--dir", directory}).out ==
        "0 kernels, 0 texts, 0 bytes in " + directory + "\n");
  {
    DiskCache cache(directory, DiskCache::defaultBytes);
    auto target = describeTarget("haswell");
    auto spec = readSpec((folder.path() / "bn.yaml").string());
    REQUIRE(bool(target));
    REQUIRE(bool(spec));
    auto artifact = Session(*target).compile(*spec, Phase::Inference);
    REQUIRE(bool(artifact));
    cache.write(CacheKind::Kernel, {"a", {}, serialize(*artifact)});
    cache.write(CacheKind::Kernel,
                {"b", {{"/nowhere/compiler.so", 1, "build-id 00"}}, serialize(*artifact)});
  }
  const Outcome list = folder.run({"cache", "list", "--dir", directory});
  CHECK(list.status == 0);
  CHECK(list.out.find("bn, inference, haswell, 2 variants\n") != std::string::npos);
  const Outcome verify = folder.run({"cache", "verify", "--dir", directory});
  CHECK(verify.status == 1);
  CHECK(verify.out.find("stale: made by another version of /nowhere/compiler.so\n") !=
        std::string::npos);
  CHECK(verify.out.find("; 1 would not be used\n") != std::string::npos);
  CHECK(folder.run({"cache", "clear", "--dir", directory}).out ==
        "removed 2 files from " + directory + "\n");
  fs::permissions(directory, fs::perms::all);
  const Outcome refused = folder.run({"cache", "list", "--dir", directory});
  CHECK(refused.status == 2);
  CHECK(refused.err ==
        "normforge: error: cannot use " + directory +
            ": its group or others can write to it, so it is not used; chmod go-w makes it safe\n");
}

TEST_CASE("explain, targets, help and version say what they should") {
  const Folder folder;
  const Outcome explain = folder.run(
      {"explain", "bn.yaml", "--phase", "training", "--size", "N=8", "--cpu", "haswell"});
  CHECK(explain.status == 0);
  CHECK(explain.err == "");
  for (const char *part : {"bn: training, mode feature, nchw f32\n", "for n in N = 8: reduced\n",
                           "for c in 3: kept, indexes the statistics; indexes gamma, beta\n",
                           "for hw in 4: reduced\n", "  elements  N * 12 = 96\n", "\n  workspace  ",
                           "\n    shown as   bn_training_v1_fused by perf and debuggers\n",
                           "written  moving_mean      f32  (3); may be", "Sizes, in order: N\n"}) {
    CAPTURE(part);
    CHECK(contains(explain.out, part));
  }
  const Outcome targets = folder.run({"targets"});
  CHECK(targets.status == 0);
  CHECK(contains(targets.out, hostCpuName()));
  for (const std::string &cpu : compilableCpus())
    CHECK(contains(targets.out, "\n" + cpu + " "));

  const Outcome version = folder.run({"--version"});
  CHECK(version.status == 0);
  CHECK(version.out.rfind("normforge ", 0) == 0);
  CHECK(contains(version.out, "\nLLVM 22."));
  CHECK(contains(version.out, "\noneDNN "));
  for (const char *sub : {"check", "compile", "pack", "run", "explain", "targets"}) {
    CAPTURE(sub);
    CHECK(contains(folder.run({"--help"}).out, std::string("\n  ") + sub + " "));
    const Outcome help = folder.run({sub, "--help"});
    CHECK(help.status == 0);
    CHECK(contains(help.out, std::string("Usage: normforge ") + sub));
  }
}

TEST_CASE("import writes a spec a layer, and a model with nodes of ours") {
  const Folder folder;
  const std::string model = std::string(NORMFORGE_TEST_DATA_DIR) + "/data/onnx/model.onnx";
  const Outcome outcome =
      folder.run({"import", model, "-o", "specs", "--rewrite", "ours.onnx", "--verbose"});
  CHECK(outcome.err == "");
  CHECK(outcome.status == 0);
  CHECK(outcome.out ==
        model + ": opset 17, 14 nodes; 2 norms, 2 specs\n"
                "spec                                  count  layer\n"
                "specs/batch_norm_4x5x6_add_relu.yaml      1  batch norm of (N, 4, 5, 6) f32, then "
                "add, relu\n"
                "    bn: BatchNormalization, Add, Relu\n"
                "specs/layer_norm_30.yaml                  1  layer norm of (N, 4, 30) f32\n"
                "    ln/mean: ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add\n"
                "ours.onnx: 2 of these are nodes of normforge now\n");
  CHECK(slurp(folder.path() / "specs/layer_norm_30.yaml") ==
        "# model.onnx: ln/mean\nname: layer_norm_30\ncount: 1\nsemantics: onnx-15\n"
        "input: {shape: [N, 4, 30], layout: nbc, dtype: f32}\nmode: layer\naxis: [2]\n"
        "epsilon: 1e-05\nparameter_dtype: f32\nphases: [inference]\n");
  CHECK(folder.run({"check", "specs", "--size", "N=3", "--threads", "1"}).status == 0);
  // The rewritten one has no norms left that are not ours.
  const Outcome again = folder.run({"import", "ours.onnx", "--json"});
  auto value = llvm::json::parse(again.out);
  REQUIRE(bool(value));
  CHECK(value->getAsObject()->getArray("layers")->empty());

  // The specs of another model are not written over.
  fs::copy_file(model, folder.path() / "other.onnx");
  CHECK(folder.run({"import", model, "-o", "specs"}).status == 0);
  folder.refuses({"import", "other.onnx", "-o", "specs"},
                 "normforge: error: -o: specs/batch_norm_4x5x6_add_relu.yaml is no spec of "
                 "other.onnx; expected a folder without it");

  folder.refuses({"import", "bn.yaml"}, "bn.yaml: error: expected an ONNX model, found something "
                                        "else than its protobuf");
  folder.refuses({"import", "none.onnx"},
                 "none.onnx: error: cannot be read: No such file or directory");
  folder.refuses({"import", model, "--rewrite", model},
                 "normforge: error: --rewrite: " + model + " is a file that is read");
  folder.refuses(
      {"import", model, "-o", "bn.yaml"},
      "bn.yaml/batch_norm_4x5x6_add_relu.yaml: error: cannot be written: Not a directory");
}
