// `normforge tune` as its users meet it: what it refuses, what ends it, what its records do.
#include "compiler/records/Choose.h"
#include "tests/errors/CommandFolder.h"

#include <csignal>
#include <sys/file.h>
#include <thread>

using namespace normforge;
using namespace normforge::test;

namespace {

const std::vector<std::string> sweep = {"tune", "bn.yaml",  "--size", "N=2", "--threads",
                                        "1",    "--budget", "20s",    "-o",  "r.jsonl"};

/// The records of a folder's file, all of whose lines are some.
std::vector<Line> recordsOf(const Folder &folder, const std::string &file = "r.jsonl") {
  std::vector<Line> records;
  for (const std::string &line : linesOf(slurp(folder.path() / file))) {
    auto parsed = parseLine(line);
    REQUIRE_MESSAGE(static_cast<bool>(parsed), line);
    records.push_back(std::move(*parsed));
  }
  return records;
}
int countOf(const std::vector<Line> &records, CandidateState state) {
  int count = 0;
  for (const Line &record : records)
    count += record.candidate && record.candidate->state == state;
  return count;
}
int resultsOf(const std::vector<Line> &records) {
  int count = 0;
  for (const Line &record : records)
    count += record.result.has_value();
  return count;
}

} // namespace

TEST_CASE("tune refuses what it cannot do, and writes nothing") {
  const Folder folder;
  folder.refuses({"tune"}, "normforge: error: specs are missing; expected files or directories of "
                           "them, --list FILE, or one of the commands that normforge tune --help "
                           "lists");
  folder.refuses(with(sweep, {"--shard", "17/16"}),
                 "normforge: error: --shard: expected INDEX/COUNT with an index from 1 to the "
                 "count, such as 3/16, found '17/16'");
  folder.refuses({"tune", "bn.yaml", "--budget", "0s"},
                 "normforge: error: --budget: expected a time above 0 such as 90s, 10m or 1.5h, "
                 "found '0s'");
  folder.refuses(with(sweep, {"--effort", "some"}),
                 "normforge: error: --effort: expected quick, full or exhaustive, found 'some'");
  folder.refuses(with(sweep, {"--cache", "hot"}), "normforge: error: --cache: expected warm, cold "
                                                  "or both with a comma, found 'hot'");
  folder.refuses(with(sweep, {"--bits", "few"}),
                 "normforge: error: --bits: expected any or fixed, found 'few'");
  folder.refuses(
      with(sweep, {"--phase", "initialize"}),
      "normforge: error: --phase: expected inference, training, backward, "
      "population, update, backward+update, moments or gradient_sums, found 'initialize'");
  folder.refuses({"tune", "bn.yaml", "--size", "M=2"},
                 "normforge: error: --size: no spec given has a size 'M'");
  folder.refuses({"tune", "bn.yaml", "--size", "N=2,x"},
                 "normforge: error: --size: expected NAME=VALUE[,VALUE] with whole numbers from 1 "
                 "to 2^63 - 1, found 'N=2,x'");
  folder.refuses({"tune", "sized.yaml"}, "normforge: error: sized.yaml: no value for size H; give "
                                         "it with --size H=VALUE");
  folder.refuses({"tune", "bn.yaml", "-o", "none/r.jsonl"},
                 "none/r.jsonl: error: cannot be written: No such file or directory");
  folder.refuses({"tune", "bn.yaml", "-o", "folder"},
                 "folder: error: cannot be written: Is a directory");
  folder.refuses({"tune", "show", "none.jsonl"},
                 "none.jsonl: error: cannot be read: No such file or directory");
}

TEST_CASE("lists of benchdnn's are refused with the place of what is wrong") {
  const Folder folder;
  auto refuses = [&](const std::string &text, const std::string &words) {
    folder.write("list.txt", text);
    folder.refuses({"tune", "--list", "list.txt"}, words);
  };
  refuses("--dir=FWD_I\n  --frob=1\nic8\n",
          "list.txt:2:3: error: unknown knob '--frob'; expected --bnorm, --lnorm, --gnorm, --dir, "
          "--dt, --tag, --flags, --mb, --attr-post-ops, --batch or --reset, or one of those of how "
          "benchdnn runs");
  refuses("--dir=FWD_D,UP ic8\n",
          "list.txt:1:13: error: --dir: expected FWD_D, FWD_I, BWD_D, BWD_DW, found 'UP'");
  refuses("--flags=GX ic8\n", "list.txt:1:9: error: --flags: expected letters of G, S, C, H, R "
                              "and A, found 'X'");
  refuses("# nothing\n\nmb2ih3\n", "list.txt:3:1: error: ic is missing");
  refuses("ic8q3\n", "list.txt:1:4: error: expected a problem of mb, ic, id, ih, iw, eps and n, "
                     "found 'q3'");
  refuses("ic0\n", "list.txt:1:4: error: ic: expected a whole number of at least 1, found ''");
  refuses("--lnorm 4xx\n", "list.txt:1:11: error: expected sizes such as 32x128x768, found 'x'");
  refuses("--dt=s8 ic8\n", "list.txt:1:6: error: --dt: expected f32, bf16, f16, f64, found 's8'");
  refuses("--batch=none ic8\n", "list.txt:1:1: error: --batch: none cannot be read: No such file "
                                "or directory");
  refuses("--batch=list.txt\n", "list.txt:1:1: error: --batch: lists include one another without "
                                "end");
  refuses("--lnorm --flags=G 4x8\n", "list.txt:1:19: error: layer normalization with given "
                                     "statistics (flag G) is not built");
  refuses("--tag=nCx ic8ih4\n",
          "list.txt:1:11: error: --tag=nCx: expected nchw, abx, nhwc, axb, nChw16c or aBx16b for "
          "this problem");
}

TEST_CASE("tune tells of a disk that is full") {
  const Folder folder;
  folder.refuses({"tune", "bn.yaml", "-o", "/dev/full"},
                 "/dev/full: error: expected a file, found a device or pipe");
  // The lines that fit are there, and whole.
  const Outcome outcome = folder.wait(folder.start(sweep, 3000));
  CHECK(outcome.status == 2);
  CHECK(outcome.err == "r.jsonl: error: cannot be written: File too large\n");
  const std::string text = slurp(folder.path() / "r.jsonl");
  CHECK(text.size() <= 3000);
  CHECK(text.ends_with("\n"));
  CHECK(recordsOf(folder).size() > 2);
}

TEST_CASE("a second writer of one file is refused") {
  const Folder folder;
  folder.write("r.jsonl", "");
  const int file = open((folder.path() / "r.jsonl").c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(flock(file, LOCK_EX | LOCK_NB) == 0);
  folder.refuses(sweep, "r.jsonl: error: another normforge tune writes it; give each a file of its "
                        "own and merge them");
  close(file);
}

TEST_CASE("a sweep records all that it does, and does nothing twice") {
  const Folder folder;
  Outcome outcome = folder.run(sweep);
  INFO(outcome.err, outcome.out);
  REQUIRE(outcome.status == 0);
  CHECK(contains(outcome.out, "2 tuned, 0 were there, 0 failed, 0 left"));
  const std::vector<Line> records = recordsOf(folder);
  CHECK(resultsOf(records) == 2);
  CHECK(countOf(records, CandidateState::Wrong) == 0);
  CHECK(countOf(records, CandidateState::Crashed) == 0);
  CHECK(records.size() > 6);
  const std::string before = slurp(folder.path() / "r.jsonl");
  outcome = folder.run(sweep);
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "0 tuned, 2 were there, 0 failed, 0 left"));
  CHECK(slurp(folder.path() / "r.jsonl") == before);

  // A sweep's findings are used: a schedule of its own, planted as a result.
  outcome = folder.run({"tune", "show", "r.jsonl"});
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "2 cases, 2 of them of this machine and version"));
  outcome = folder.run({"tune", "report", "r.jsonl", "-o", "r.html"});
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  const std::string page = slurp(folder.path() / "r.html");
  CHECK(page.starts_with("<!DOCTYPE html>"));
  for (const char *part :
       {"<h1>Tuned schedules</h1>", "<h2>Totals</h2>", "<h2>Knobs</h2>", "<h2>What failed</h2>",
        "prefers-color-scheme: dark", "bn<small>training", "No candidate was wrong"})
    CHECK_MESSAGE(contains(page, part), std::string(part));
  for (const char *part : {"http", "<script", "src=", "url("}) // nothing from elsewhere
    CHECK_MESSAGE(!contains(page, part), std::string(part));
  for (const char *command : {"check", "explain"}) {
    outcome = folder.run({command, "bn.yaml", "--tuned", "r.jsonl"});
    CHECK_MESSAGE(outcome.status == 0, outcome.err);
  }
}

TEST_CASE("records from the future, of other machines and languages are told of and left out") {
  const Folder folder;
  const Outcome made = folder.run(with(sweep, {"--phase", "inference"}));
  REQUIRE_MESSAGE(made.status == 0, made.err);
  std::optional<ResultRecord> result;
  for (const Line &record : recordsOf(folder))
    if (record.result)
      result = record.result;
  REQUIRE(result);
  ResultRecord other = *result, older = *result, illegal = *result;
  other.key.machine.cpu = "z80";
  older.key.language = kScheduleLanguage + 1;
  illegal.schedule = "tails=masked nothing(of; take=[this] vector=3)";
  std::string future = toLine(*result);
  future.replace(future.find("\"version\":1"), 11, "\"version\":9");
  folder.write("mixed.jsonl", toLine(other) + "\n" + future + "\n" + toLine(older) + "\n" +
                                  toLine(illegal) + "\nno JSON\n");
  const std::string warnings =
      "mixed.jsonl:2: warning: left out: is of version 9, from the future; this normforge reads up "
      "to 1\nmixed.jsonl:5: warning: left out: no JSON: ";
  Outcome outcome = folder.run({"tune", "show", "mixed.jsonl"});
  CHECK(outcome.status == 0);
  CHECK_MESSAGE(outcome.err.starts_with(warnings), outcome.err);
  CHECK(contains(outcome.out, "3 cases, 1 of them of this machine and version"));
  CHECK(contains(outcome.out, "] CPU z80, here "));
  CHECK(contains(outcome.out, fmt::format("] schedules' language {}, here {}",
                                          kScheduleLanguage + 1, kScheduleLanguage)));
  outcome = folder.run({"check", "bn.yaml", "--phase", "inference", "--tuned", "mixed.jsonl"});
  CHECK(outcome.status == 0);
  CHECK_MESSAGE(outcome.err.starts_with(warnings), outcome.err);
  outcome = folder.run({"explain", "bn.yaml", "--tuned", "mixed.jsonl"});
  CHECK(outcome.status == 0);
  CHECK_FALSE(contains(outcome.out, "tuned:"));
  // A sweep goes on beside them.
  fs::rename(folder.path() / "mixed.jsonl", folder.path() / "r.jsonl");
  outcome = folder.run(with(sweep, {"--phase", "inference"}));
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  CHECK(contains(outcome.out, "1 tuned, 0 were there")); // for the one of this case is of no use
  outcome = folder.run(with(sweep, {"--phase", "inference"}));
  CHECK(contains(outcome.out, "0 tuned, 1 were there"));
}

TEST_CASE("a sweep that is killed goes on where it was") {
  const Folder folder;
  const pid_t child = folder.start(with(sweep, {"--effort", "full"}));
  size_t lines = 0;
  for (int i = 0; i < 600 && lines < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    lines = linesOf(slurp(folder.path() / "r.jsonl")).size();
  }
  kill(child, SIGKILL);
  CHECK(folder.wait(child).status == 128 + SIGKILL);
  // A line that was being written.
  std::ofstream(folder.path() / "r.jsonl", std::ios::app) << "{\"record\":\"candi";
  const std::string before = slurp(folder.path() / "r.jsonl");
  const size_t held = linesOf(before).size() - 1;
  CHECK(held >= 5);
  const Outcome outcome = folder.run(sweep); // quick: in the time that there is
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  CHECK(contains(outcome.err, fmt::format("r.jsonl:{}: warning: left out: no JSON: ", held + 1)));
  const std::string after = slurp(folder.path() / "r.jsonl");
  CHECK(after.starts_with(before + "\n"));
  // Nothing is there twice.
  std::map<std::string, int> seen;
  for (const std::string &line : linesOf(after))
    if (auto parsed = parseLine(line); !parsed)
      llvm::consumeError(parsed.takeError());
    else if (parsed->candidate)
      CHECK(++seen[parsed->candidate->caseId + parsed->candidate->schedule] == 1);
}

#ifdef NORMFORGE_SANITIZED // whose handler of the signal ends the process
constexpr const char *kCrash = "exit status 1";
#else
constexpr const char *kCrash = "signal 11, Segmentation fault";
#endif

TEST_CASE("a bad candidate costs itself") {
  const Folder folder;
  const std::vector<std::string> words = {"tune",      "bn.yaml", "--size",  "N=2",
                                          "--threads", "1",       "--phase", "training"};
  // The first one that is tried, whatever is measured.
  const Outcome made = folder.run(with(words, {"-o", "r.jsonl"}));
  REQUIRE_MESSAGE(made.status == 0, made.err);
  std::string schedule;
  for (const Line &record : recordsOf(folder))
    if (schedule.empty() && record.candidate && record.candidate->pairs > 0)
      schedule = record.candidate->schedule;
  REQUIRE_FALSE(schedule.empty());

  struct Planted {
    const char *fault;
    CandidateState state;
    const char *note;
  };
  for (const Planted &planted : {
           Planted{"crash", CandidateState::Crashed, kCrash},
           Planted{"wrong", CandidateState::Wrong, "a planted fault"},
           Planted{"hang", CandidateState::TimedOut, "no answer in time"},
#ifndef NORMFORGE_SANITIZED // which reserves more memory than any limit allows
           Planted{"exhaust", CandidateState::Refused, "out of memory"},
#endif
       }) {
    CAPTURE(std::string(planted.fault));
    const std::string file = std::string(planted.fault) + ".jsonl";
    const bool hangs = planted.state == CandidateState::TimedOut;
    const Outcome outcome = folder.run(
        with(words, {"-o", file, "--candidate-seconds", hangs ? "1" : "60", "--candidate-bytes",
                     "536870912", "--fault", fmt::format("{}={}", planted.fault, schedule)}));
    CHECK_MESSAGE(outcome.status == 0, outcome.err);
    const std::vector<Line> records = recordsOf(folder, file);
    CHECK(resultsOf(records) == 1);
    int met = 0;
    for (const Line &record : records)
      if (record.candidate && record.candidate->schedule == schedule) {
        CHECK((record.candidate->state == planted.state));
        CHECK(record.candidate->note == planted.note);
        ++met;
      }
    CHECK(met == 1);
    CHECK(countOf(records, CandidateState::Measured) + countOf(records, CandidateState::Behind) >
          0);
    if (planted.state != CandidateState::Refused)
      CHECK(contains(outcome.out,
                     fmt::format("{}: {}\n", toString(planted.state).str(), planted.note)));
  }
}

TEST_CASE("shards take each case once, into files that merge to one") {
  const Folder folder;
  for (const char *shard : {"1/2", "2/2"}) {
    const Outcome outcome = folder.run(with(sweep, {"--shard", shard}));
    CHECK_MESSAGE(outcome.status == 0, outcome.err);
    CHECK(contains(outcome.out, "2 cases, shard "));
  }
  const std::vector<std::string> parts = {"r.1-of-2.jsonl", "r.2-of-2.jsonl"};
  for (const std::string &part : parts)
    CHECK(resultsOf(recordsOf(folder, part)) == 1);
  CHECK(folder.run({"tune", "merge", parts[0], parts[1], "-o", "a.jsonl"}).status == 0);
  CHECK(folder.run({"tune", "merge", parts[1], parts[0], parts[1], "a.jsonl", "-o", "b.jsonl"})
            .status == 0);
  CHECK(slurp(folder.path() / "a.jsonl") == slurp(folder.path() / "b.jsonl"));
  CHECK(recordsOf(folder, "a.jsonl").size() ==
        recordsOf(folder, parts[0]).size() + recordsOf(folder, parts[1]).size());
  CHECK(folder.run({"tune", "merge", "a.jsonl", "--results", "-o", "c.jsonl"}).status == 0);
  CHECK(recordsOf(folder, "c.jsonl").size() == 2);
}

TEST_CASE("a list is swept with cold caches and the same bits") {
  const Folder folder;
  folder.write("list.txt", "--dir=FWD_I --flags=CH --tag=axb ic16ih3\n");
  Outcome outcome = folder.run({"tune", "--list", "list.txt", "-o", "r.jsonl", "--threads", "1",
                                "--cache", "cold,warm", "--bits", "fixed", "--budget", "60s"});
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  CHECK(contains(outcome.out, "2 tuned, 0 were there, 0 failed, 0 left"));
  size_t cold = 0;
  const std::vector<Line> records = recordsOf(folder);
  for (const Line &line : records)
    if (line.result) {
      cold += line.result->key.cache == CacheState::Cold;
      CHECK((line.result->key.bits == BitsPolicy::Fixed));
    }
  CHECK(resultsOf(records) == 2);
  CHECK(cold == 1);
}

TEST_CASE("a pack names the records that its kernels come from") {
  const Folder folder;
  Outcome outcome = folder.run(with(sweep, {"--phase", "inference"}));
  REQUIRE_MESSAGE(outcome.status == 0, outcome.err);
  // Whatever this machine prefers: another schedule, planted as the result.
  std::optional<ResultRecord> planted;
  std::string other;
  for (const Line &line : recordsOf(folder)) {
    if (line.candidate && line.candidate->state != CandidateState::Refused)
      other = line.candidate->schedule;
    if (line.result)
      planted = line.result;
  }
  REQUIRE(planted);
  REQUIRE(!other.empty());
  planted->schedule = other;
  planted->gain = {1.5, 1.4, 1.6};
  planted->noise = {1, 0.99, 1.01};
  folder.write("planted.jsonl", toLine(*planted) + "\n");
  outcome = folder.run({"pack", "bn.yaml", "--tuned", "planted.jsonl", "-o", "bn.nfpack"});
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  outcome = folder.run({"pack", "--list", "bn.nfpack"});
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  CHECK_MESSAGE(contains(outcome.out, "tuned: 1.50"), outcome.out);
  CHECK_MESSAGE(contains(outcome.out, "planted.jsonl"), outcome.out);
  // Beside much noise nothing is chosen by it, and it is measured again where that is asked for.
  planted->noise = {1, 0.7, 1.6};
  folder.write("r.jsonl", toLine(*planted) + "\n");
  outcome = folder.run({"explain", "bn.yaml", "--phase", "inference", "--tuned", "r.jsonl"});
  CHECK_MESSAGE(outcome.status == 0, outcome.err);
  CHECK_FALSE(contains(outcome.out, "r.jsonl"));
  outcome = folder.run({"tune", "show", "r.jsonl"});
  CHECK_MESSAGE(contains(outcome.out, "not used: noise"), outcome.out);
  std::vector<std::string> again = with(sweep, {"--phase", "inference"});
  outcome = folder.run(again);
  CHECK_MESSAGE(contains(outcome.out, "0 tuned, 1 were there"), outcome.out);
  again.push_back("--again");
  outcome = folder.run(again);
  CHECK_MESSAGE(contains(outcome.out, "1 tuned, 0 were there"), outcome.out);
}

TEST_CASE("files that have no records are answered") {
  const Folder folder;
  folder.write("text.jsonl", "one\ntwo\n");
  folder.write("sweep.nfs", "NFSWEEP\n and more");
  Outcome outcome = folder.run({"tune", "merge", "text.jsonl", "-o", "out.jsonl"});
  CHECK(outcome.status == 2);
  CHECK_MESSAGE(contains(outcome.err, "text.jsonl: error: has no records"), outcome.err);
  CHECK(!std::filesystem::exists(folder.path() / "out.jsonl"));
  outcome = folder.run({"tune", "import", "sweep.nfs", "-o", "out.jsonl"});
  CHECK(outcome.status == 2);
  CHECK_MESSAGE(contains(outcome.err, "normforge-tune-run"), outcome.err);
}

TEST_CASE("events are JSON, one a line") {
  const Folder folder;
  const Outcome outcome = folder.run(with(sweep, {"--json", "--phase", "inference"}));
  CHECK(outcome.status == 0);
  const std::vector<std::string> lines = linesOf(outcome.out);
  REQUIRE(lines.size() > 3);
  CHECK(contains(lines.front(), "\"event\":\"begin\""));
  CHECK(contains(lines[1], "\"event\":\"case_begins\""));
  CHECK(contains(lines[lines.size() - 2], "\"event\":\"case_ends\""));
  CHECK(contains(lines.back(), "\"event\":\"end\""));
}
