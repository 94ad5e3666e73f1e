// The words of the command on itself: help that fits, examples that work, the manual page,
// completion in shells, and output folded at a terminal's width.
#include "tests/errors/CommandFolder.h"

#include "compiler/cli/Terminal.h"
#include "compiler/machine/Machine.h"
#include "compiler/session/Session.h"
#include "runtime/cache/DiskCache.h"

#include "llvm/Support/JSON.h"

#include <algorithm>
#include <cstdlib>

using namespace normforge;
using namespace normforge::cli;
using namespace normforge::test;

namespace {

/// Names of subcommands, which help lists under this title.
std::vector<std::string> subcommandsIn(const std::string &help) {
  std::vector<std::string> names;
  bool isList = false;
  for (const std::string &line : linesOf(help)) {
    if (line == "Subcommands:")
      isList = true;
    else if (isList && line.size() > 2 && line.starts_with("  ") && line[2] != ' ')
      names.push_back(line.substr(2, line.find(' ', 2) - 2));
    else if (isList && !line.starts_with("  "))
      isList = false;
  }
  return names;
}

/// Every command as words: {"tune", "merge"}.
void forEachCommand(const Folder &folder, const std::vector<std::string> &path, auto visit) {
  const Outcome help = folder.run(with({"help"}, path));
  REQUIRE(help.status == 0);
  visit(path, help.out);
  for (const std::string &name : subcommandsIn(help.out))
    forEachCommand(folder, with(path, {name}), visit);
}

int shell(const Folder &folder, const std::string &line) {
  const std::string log = folder.path() / "log";
  const int status = std::system(("cd '" + folder.path().string() + "' && PATH='" +
                                  fs::path(NORMFORGE_COMMAND).parent_path().string() +
                                  "':$PATH && { " + line + " ; } >'" + log + "' 2>&1")
                                     .c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

} // namespace

TEST_CASE("help fits 80 columns, is the same by help and --help, and describes every option") {
  const Folder folder;
  size_t commands = 0;
  forEachCommand(folder, {}, [&](const std::vector<std::string> &path, const std::string &help) {
    CAPTURE(fmt::format("{}", fmt::join(path, " ")));
    ++commands;
    const std::vector<std::string> lines = linesOf(help);
    for (size_t i = 0; i < lines.size(); ++i) {
      CAPTURE(lines[i]);
      CHECK(lines[i].size() <= 80);
      // An option's name is followed by its description, beside it or below.
      if (lines[i].starts_with("  -"))
        CHECK((lines[i].find("  ", 3) != std::string::npos ||
               (i + 1 < lines.size() && lines[i + 1].starts_with("          "))));
    }
    CHECK(folder.run(with(path, {"--help"})).out == help);
  });
  CHECK(commands > 15);
  folder.refuses({"help", "chek"},
                 "normforge: error: unknown command 'chek'; expected one of check, compile, pack, "
                 "roofline, tune, run, convert, import, explain, targets, cache, help");
  folder.refuses({"help", "check", "more"},
                 "normforge: error: normforge check has no subcommands; found 'more'");
  folder.refuses({"help", "--completion", "tcsh"},
                 "normforge: error: --completion: expected bash, zsh or fish, found 'tcsh'");
  folder.refuses({"help", "check", "--man"},
                 "normforge: error: help takes a command, --man or --completion, one of them");
}

TEST_CASE("the two examples at the end of each command's help work") {
  const Folder folder;
  const fs::path source = NORMFORGE_SOURCE_DIR;
  for (const char *name : {"specs", "examples", "tests"})
    fs::create_directory_symlink(source / name, folder.path() / name);
  fs::create_directory(folder.path() / "build");
  fs::copy_file(source / "tests/data/npz/model.npz", folder.path() / "model.npz");
  fs::copy_file(source / "tests/data/onnx/model.onnx", folder.path() / "model.onnx");
  folder.array("x.npy", {20, 5, 10}, 1);
  folder.array("gamma.npy", {10}, 2);
  folder.array("beta.npy", {10}, 0.5);
  // A sweep that has been run, as tune import reads it.
  REQUIRE(shell(folder, "normforge tune export specs/bert_base/layer_norm.yaml --phase inference "
                        "--size N=1 --size T=2 --threads 1 --candidates 2 -o build/one.nfs && "
                        "normforge-tune-run build/one.nfs -o build/r.jsonl") == 0);
  setenv("NORMFORGE_CACHE_DIR", (folder.path() / "build/kernels").c_str(), 1);
  forEachCommand(folder, {}, [&](const std::vector<std::string> &path, const std::string &help) {
    if (path.empty())
      return;
    CAPTURE(fmt::format("{}", fmt::join(path, " ")));
    std::vector<std::string> lines = linesOf(help);
    const auto begin = std::ranges::find(lines, "Examples:");
    REQUIRE(begin != lines.end());
    std::vector<std::string> examples;
    for (auto line = begin + 1; line != lines.end() && !line->empty(); ++line) {
      if (line->starts_with("  normforge "))
        examples.push_back(*line);
      else // folded
        examples.back() += " " + line->substr(line->find_first_not_of(' '));
    }
    CHECK(examples.size() == 2);
    for (const std::string &example : examples) {
      CAPTURE(example);
      const int status = shell(folder, example);
      CAPTURE(slurp(folder.path() / "log"));
      CHECK(status == 0);
    }
  });
}

TEST_CASE("the manual page and completions") {
  const Folder folder;
  const Outcome manual = folder.run({"help", "--man"});
  CHECK(manual.out.starts_with(".TH NORMFORGE 1"));
  for (const char *part :
       {".SS check\n", ".SS tune merge\n", "\\fB\\-\\-schedule\\fR", ".SH EXIT STATUS\n"})
    CHECK(contains(manual.out, part));
  folder.write("normforge.1", manual.out);
  if (shell(folder, "command -v man && command -v groff") == 0) {
    CHECK(shell(folder, "man --warnings -E UTF-8 -l normforge.1 2>&1 >/dev/null | grep .") == 1);
  } else {
    MESSAGE("SKIP: the manual page is not formatted: man and groff are not installed");
  }
  for (const char *name : {"bash", "zsh", "fish"}) {
    const Outcome completion = folder.run({"help", "--completion", name});
    CHECK(completion.status == 0);
    folder.write(std::string("completion.") + name, completion.out);
    if (shell(folder, std::string("command -v ") + name) != 0) {
      MESSAGE("SKIP: ", std::string(name), " is not installed: its completions are not read");
      continue;
    }
    CHECK(shell(folder, fmt::format("{0} -n completion.{0}", name)) == 0);
  }
  // As bash completes.
  const std::string complete =
      "bash -c '. ./completion.bash; COMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
      "_normforge; echo \"${{COMPREPLY[*]}}\"'";
  for (auto [words, expected] :
       {std::pair("normforge ch", "check\n"), std::pair("normforge tune me", "merge\n"),
        std::pair("normforge explain --sche", "--schedule\n"),
        std::pair("normforge compile --cpu hasw", "haswell\n"),
        std::pair("normforge check --phase tr", "training\n"),
        std::pair("normforge tune show --j", "--json\n")}) {
    CAPTURE(words);
    CHECK(shell(folder, fmt::format(fmt::runtime(complete), words)) == 0);
    CHECK(slurp(folder.path() / "log") == expected);
  }
}

TEST_CASE("output fits a terminal of 80 columns, and --wide leaves it as it is") {
  const Folder folder;
  fs::create_directory_symlink(fs::path(NORMFORGE_SOURCE_DIR) / "specs", folder.path() / "specs");
  folder.write("tuned.jsonl", slurp(fs::path(NORMFORGE_SOURCE_DIR) / "specs/tuned/znver4.jsonl"));
  const std::vector<std::vector<std::string>> commands{
      {"check", "specs/resnet50/conv5_block1_1_bn.yaml", "--size", "N=1", "--threads", "1"},
      {"check", "--adversarial", "bn.yaml", "--phase", "training", "--size", "N=2"},
      {"explain", "specs/resnet50/conv5_block1_1_bn.yaml", "--phase", "training", "--size", "N=8"},
      {"targets"},
      {"tune", "show", "tuned.jsonl"},
      {"pack", "--list", "model.nfk"}};
  REQUIRE(folder
              .run({"pack", "specs/resnet50/conv5_block1_1_bn.yaml", "--cpu", "haswell", "-o",
                    "model.nfk"})
              .status == 0);
  for (const std::vector<std::string> &words : commands) {
    CAPTURE(fmt::format("{}", fmt::join(words, " ")));
    setenv("COLUMNS", "80", 1);
    const Outcome narrow = folder.run(words);
    CHECK(narrow.err == "");
    CHECK(narrow.status == 0);
    size_t longest = 0;
    for (const std::string &line : linesOf(narrow.out)) {
      // A schedule is in one line, for --schedule to take.
      if (line.size() > 80 && !line.starts_with("  schedule "))
        CHECK_MESSAGE(line == "", "a line of " << line.size());
      longest = std::max(longest, std::min<size_t>(line.size(), 80));
    }
    CHECK(longest > 50);
    const Outcome wide = folder.run(with(words, {"--wide"}));
    unsetenv("COLUMNS");
    longest = 0;
    for (const std::string &line : linesOf(wide.out))
      longest = std::max(longest, line.size());
    CHECK(longest > 80);
  }
}

TEST_CASE("explain, targets and cache print JSON") {
  const Folder folder;
  for (const std::vector<std::string> &words :
       {std::vector<std::string>{"explain", "bn.yaml", "--phase", "training", "--size", "N=8",
                                 "--json"},
        std::vector<std::string>{"targets", "--json"}}) {
    const Outcome outcome = folder.run(words);
    CHECK(outcome.status == 0);
    auto value = llvm::json::parse(outcome.out);
    REQUIRE(bool(value));
    const llvm::json::Object *object = value->getAsObject();
    REQUIRE(object);
    if (words.front() == "explain") {
      CHECK(object->getObject("least_bytes")->getInteger("value") == 8 * 12 * 4 * 2);
      CHECK(object->getArray("arguments")->size() == 10);
      CHECK(object->getArray("alternatives")->size() >= 1);
      const llvm::json::Array *variants = object->getArray("variants");
      CHECK(std::ranges::count_if(*variants, [](const llvm::json::Value &variant) {
              return *variant.getAsObject()->getBoolean("taken");
            }) == 1);
    } else {
      CHECK(object->getObject("host")->getObject("target")->getInteger("l1_bytes") > 0);
      CHECK(object->getArray("targets")->size() == compilableCpus().size());
    }
  }
  const std::string directory = folder.path() / "kernels";
  auto artifact = Session(llvm::cantFail(describeTarget("haswell")))
                      .compile(llvm::cantFail(readSpec((folder.path() / "bn.yaml").string())),
                               Phase::Inference);
  REQUIRE(bool(artifact));
  DiskCache(directory, DiskCache::defaultBytes)
      .write(CacheKind::Kernel, {"a", {}, serialize(*artifact)});
  const Outcome list = folder.run({"cache", "list", "--dir", directory, "--json"});
  CHECK(list.status == 0);
  auto entry = llvm::json::parse(list.out);
  REQUIRE(bool(entry));
  CHECK(entry->getAsObject()->getString("kind") == "kernel");
  CHECK(entry->getAsObject()->getString("contents")->starts_with("bn, inference, haswell"));
  CHECK(entry->getAsObject()->getString("problem") == "");
}

TEST_CASE("lines are folded at spaces, and keep their indentation") {
  CHECK(folded("ab cd ef", 80) == "ab cd ef");
  CHECK(folded("ab cd ef\n", 5) == "ab cd\n  ef\n");
  CHECK(folded("  ab cd ef\n\nx\n", 7) == "  ab cd\n   ef\n\nx\n"); // at most half is indentation
  CHECK(folded("long-word-that-does-not-fit at", 10) == "long-word-that-does-not-fit\n  at");
  CHECK(folded("", 10) == "");
  CHECK(folded("a    b", 10) == "a    b"); // columns stay where they are
}

TEST_CASE("tables leave out what matters least, and fold the first column") {
  const std::vector<Column> columns{{.title = "name", .width = 10},
                                    {.title = "size", .width = 6, .isNumber = true},
                                    {.title = "note", .width = 8, .importance = 1},
                                    {.title = "share\nof all", .width = 6, .importance = 2}};
  Columns wide(columns, 80);
  CHECK(wide.titles() == "name          size  note      share\n"
                         "                              of all\n");
  CHECK(wide.row({"a", "12", "b", "c"}) == "a               12  b         c\n");
  CHECK(wide.leftOut() == "");
  Columns narrow(columns, 27);
  CHECK(narrow.row({"a", "12", "b", "c"}) == "a               12  c\n");
  CHECK(narrow.leftOut() == "not shown in 27 columns,\n  but with --wide: note\n");
  Columns least(columns, 16);
  CHECK(least.row({"long", "12", "b", "c"}) == "long\n      12  c\n");
  CHECK(least.row({"long", "13", "b", "d"}) == "      13  d\n");
  CHECK(least.row({"next", "14", "b", "d"}) == "next\n      14  d\n");
}
