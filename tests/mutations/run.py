#!/usr/bin/env python3
"""Breaks the compiler on purpose, one line at a time, and expects tests to notice.

    tests/mutations/run.py [BUILD_DIR]     # build/mutations; some 30 minutes on two cores
    tests/mutations/run.py --only TEXT     # those whose description has the text
    tests/mutations/run.py --list

Each mutation is a piece of text that is replaced in a worktree of HEAD. A mutation is caught when
`normforge check` of the specs beside this file, random specs (normforge_differential),
PropertiesTest or SchedulesTest disagree or do not compile. Exit status 1: some mutation survived, or its text is no longer there.
"""
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPECS = "tests/mutations/specs"

# For each mutation: the defect, the file, the text, and the text that replaces it.
MUTATIONS = [
    ("a part of a block ends where another part would", "compiler/passes/FormTasks.cpp",
     "sizes().mul(extents[outer], sizes().constant(block))",
     "sizes().mul(extents[outer], extents[inner])"),
    ("elements are rows though columns are made there", "compiler/schedule/Schedule.cpp",
     "  if (elementsAlone && kept[last]", "  if (kept[last]"),
    ("the tail of columns lacks a lane", "compiler/passes/StepContext.cpp",
     "constantMask(b_, context.step.getLoc(), lanes - offset, width);",
     "constantMask(b_, context.step.getLoc(), lanes - offset - 1, width);"),
    ("lanes past the end of a row count", "compiler/passes/StepPoints.cpp",
     "sum = spot.mask && (context_.isRows() || at.exists)", "sum = false && spot.mask"),
    ("a sum of blocks forgets the blocks before", "compiler/passes/StepLoops.cpp",
     "      sum = combine(sum, of);\n    return outer;", "      sum = of;\n    return outer;"),
    ("every tile is the first that a sum is carried by", "compiler/passes/FormTasks.cpp",
     "  return first ? first : constants_->get", "  return constants_->get"),
    ("no tile is the first that a sum is carried by", "compiler/passes/FormTasks.cpp",
     "constants_->get(loc_, b_.getBoolAttr(true))", "constants_->get(loc_, b_.getBoolAttr(false))"),
    ("reversed tasks begin one too late", "compiler/passes/FormTasks.cpp",
     "sizes().sub(sizes().add(OpFoldResult(first_), OpFoldResult(last_)), sizes().constant(1)));",
     "sizes().add(OpFoldResult(first_), OpFoldResult(last_)));"),
    ("a task's last chunk is as long as the others", "compiler/passes/FormTasks.cpp",
     "sizes().min(sizes().constant(chunks[i]), sizes().sub(loopSizes_[i], range.offset));",
     "sizes().constant(chunks[i]);"),
    ("a merge lacks what chunks differ by", "compiler/lowering/Lowering.cpp",
     "Value squares = e.fma(difference, e.add(together, rest), v[2]);", "Value squares = v[2];"),
    ("a merge takes all chunks for whole ones", "compiler/lowering/Lowering.cpp",
     "count = arith::MulIOp::create(b, loc, count, taken);",
     "count = arith::MulIOp::create(b, loc, count, size);"),
    ("what a partial mean's rounding leaves is lost", "compiler/lowering/Lowering.cpp",
     "e.fma(count(b, loc, loop, v), difference, rest)",
     "e.mul(count(b, loc, loop, v), difference)"),
    ("padding is not written as zeros", "compiler/lowering/Lowering.cpp",
     "value = zeroPadding(b, loc, loop, axisSize, value);", "value = value;"),
    ("padding counts in moments", "compiler/lowering/Lowering.cpp",
     "Value residual = zeroPadding(b, loc, loop, axisSize, e.sub(value[0], v[values]));",
     "Value residual = e.sub(value[0], v[values]);"),
    ("arrays of the workspace overlap", "compiler/lowering/Lowering.cpp",
     "    bytes = bytes + ceilDivide(size, NF_WORKSPACE_ALIGNMENT) *",
     "    bytes = ceilDivide(size, NF_WORKSPACE_ALIGNMENT) *"),
    ("the mean is not corrected", "compiler/operator/MakeStatistics.cpp",
     "  const Term mean = moments.mean + rest;", "  const Term mean = moments.mean;"),
    ("what the mean's rounding leaves is lost", "compiler/operator/MakeStatistics.cpp",
     "Term shift = zeroIfNan(-rest * scale);", "Term shift = constant(0);"),
    ("groups lack what channels differ by", "compiler/operator/MakeStatistics.cpp",
     "fma(count, ofMeans[2], sums[1])", "sums[1]"),
    ("groups lack what channels' means left", "compiler/operator/MakeStatistics.cpp",
     "count * (ofMeans[1] + sums[0])", "count * ofMeans[1]"),
    ("channels are counted in groups of one", "compiler/operator/Operator.cpp",
     "stride = loops[own[loop]].size * stride)", "stride = stride)"),
    ("the moving mean takes what the variance is to take", "compiler/operator/MakeStatistics.cpp",
     'average("moving_mean", weights.oldMean, weights.batchMean, mean);',
     'average("moving_mean", weights.batchMean, weights.oldMean, mean);'),
    ("the moving variance is biased", "compiler/operator/MakeStatistics.cpp",
     "select(less(constant(0), denominator), n / denominator, one)", "one"),
    ("dx lacks its mean", "compiler/operator/MakeBackward.cpp",
     "gradient = fma(scale, h, fma(*ofX, centered, *ofOne));",
     "gradient = fma(scale, h, *ofX * centered);"),
    ("dx lacks what goes through the deviation", "compiler/operator/MakeBackward.cpp",
     "gradient = fma(scale, h, fma(*ofX, centered, *ofOne));",
     "gradient = fma(scale, h, *ofOne);"),
    ("the gradient of the variance lacks its 2", "compiler/operator/MakeBackward.cpp",
     "const Term seed = constant(2) / n *", "const Term seed = constant(1) / n *"),
    ("the saved mean is not corrected", "compiler/operator/MakeBackward.cpp",
     "    product = fma(-*rest, *sum, *product);\n  }", "  }"),
    ("dx takes the saved mean for the mean", "compiler/operator/MakeBackward.cpp",
     "-fma(ofX, *rest, ", "-fma(ofX, constant(0), "),
    ("dgamma lacks the deviation", "compiler/operator/MakeBackward.cpp",
     "*corrected.addend * *sum) : s * *product;", "*corrected.addend * *sum) : *product;"),
    ("a stored sum's own gradient is left out", "compiler/operator/MakeBackward.cpp",
     'gradient = gradient + operand("d" + run.from);', "gradient = gradient + constant(0);"),
    ("a quotient's gradient lacks its square", "compiler/expr/Expr.cpp",
     "add(1, -(g * self / in(1)));", "add(1, -(g * self));"),
    ("both branches of a condition get the gradient", "compiler/expr/Expr.cpp",
     "add(2, select(in(0), zero, g));", "add(2, g);"),
    ("half precision is cut off, not rounded", "compiler/target/HalfPrecision.cpp",
     "l.word(static_cast<uint32_t>((15 - 127) * (1 << 23) + 0xFFF))",
     "l.word(static_cast<uint32_t>((15 - 127) * (1 << 23)))"),
    ("a word of bits does not begin with zeros", "compiler/passes/Bits.cpp",
     "Value begins = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, words.shift, i32(0));",
     "Value begins = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, words.shift, i32(99));"),
    ("bits past a row's end are kept", "compiler/passes/Bits.cpp",
     "value = arith::AndIOp::create(b_, loc_, value, spot.mask);", "value = value;"),
    ("bits lie in one word alone", "compiler/passes/Bits.cpp",
     "words.crosses = spot.shifted && !spot.width.isScalar();", "words.crosses = false;"),
    ("a kept bit says the opposite", "compiler/expr/Functions.cpp",
     "return negation(lessEqual(x, x.constant(0))); }", "return lessEqual(x, x.constant(0)); }"),
    ("an iteration that is not there is held and summed", "compiler/passes/StepLoops.cpp",
     "if (!size || *size < (i + 1) * step) {", "if (false) {"),
    ("what a thread does not hold begins one too late", "compiler/passes/StepLoops.cpp",
     "? std::optional<int64_t>() : count * step;", "? std::optional<int64_t>() : (count + 1) * step;"),
    ("all that a thread holds is taken for one vector", "compiler/passes/Held.cpp",
     ": at.iterations[loop]));", ": 0));"),
    ("a stage is run without its last task", "runtime/kernel/Plan.cpp",
     "static_cast<uint64_t>(*tasks),", "static_cast<uint64_t>(*tasks > 1 ? *tasks - 1 : *tasks),"),
]


def run(command, cwd, seconds=3600):
    """Exit status and output; 124 where it takes longer."""
    try:
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=seconds)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        return 124, f"more than {expired.timeout} s"


def detectors(build):
    """Cheapest first; each fails where a result is wrong."""
    normforge = [str(build / "bin/normforge"), "check", SPECS, "--size", "N=5", "--threads", "2",
                 "--seed", "1"]
    yield "check", normforge
    yield "check --data offset", normforge + ["--data", "offset"]
    yield "check --cpu x86-64-v2", normforge + ["--cpu", "x86-64-v2"]
    yield "check --cpu sm_90", normforge + ["--cpu", "sm_90"]
    yield "random specs", [str(build / "bin/normforge_differential"), "--specs", "60", "--seed", "1"]
    yield "properties", [str(build / "bin/test_numerics"), "--source-file=*/PropertiesTest.cpp"]
    yield "schedules", [str(build / "bin/test_numerics"), "--source-file=*/SchedulesTest.cpp"]


def build_in(tree, build):
    return run(["ninja", "-C", str(build), "bin/normforge", "bin/normforge_differential",
                "bin/test_numerics"], tree)


def caught_by(tree, build):
    """The first detector that fails; None where all pass."""
    for name, command in detectors(build):
        scratch = build / "scratch"
        scratch.mkdir(exist_ok=True)
        status, _ = run(command, tree if name != "random specs" else scratch)
        if status != 0:
            return name
    return None


def main(arguments):
    if arguments == ["--list"]:
        for name, file, _, _ in MUTATIONS:
            print(f"{file}: {name}")
        return 0
    chosen = MUTATIONS
    if len(arguments) == 2 and arguments[0] == "--only":
        chosen = [mutation for mutation in MUTATIONS if arguments[1] in mutation[0]]
        arguments = []
    build = pathlib.Path(arguments[0] if arguments else ROOT / "build/mutations").resolve()
    tree = build / "tree"
    if not tree.exists():
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), "HEAD"], cwd=ROOT,
                       check=True)
    subprocess.run(["git", "checkout", "-q", "--detach", "-f",
                    subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT,
                                            text=True).strip()], cwd=tree, check=True)
    os.environ["CCACHE_BASEDIR"] = str(tree)
    os.environ["CCACHE_NOHASHDIR"] = "1"
    objects = tree / "build"  # as ./dev build has it, so that ccache finds what is the same
    subprocess.run(["cmake", "-S", str(tree), "-B", str(objects), "-G", "Ninja",
                    "-DCMAKE_BUILD_TYPE=Release"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    status, output = build_in(tree, objects)
    if status != 0 or caught_by(tree, objects):
        sys.exit("without any mutation the build or its checks fail:\n" + output[-2000:])
    bad = 0
    for name, file, text, other in chosen:
        path = tree / file
        source = path.read_text()
        start = time.time()
        if source.count(text) != 1:
            verdict, bad = f"GONE: the text is there {source.count(text)} times", bad + 1
        else:
            path.write_text(source.replace(text, other))
            status, output = build_in(tree, objects)
            by = "the build" if status != 0 else caught_by(tree, objects)
            verdict = f"caught by {by}" if by else "SURVIVED"
            bad += by is None
            path.write_text(source)
        print(f"{verdict:32} {time.time() - start:5.0f} s  {file}: {name}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
