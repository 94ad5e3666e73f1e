#include "compiler/session/Session.h"

#include "compiler/lowering/Attributes.h"
#include "compiler/lowering/Lowering.h"
#include "compiler/passes/Passes.h"
#include "compiler/records/Choose.h"
#include "compiler/target/CodeGen.h"
#include "compiler/target/LlvmLowering.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlow.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/UB/IR/UBOps.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Pass/PassManager.h"

#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/IR/Verifier.h"
#include "llvm/Linker/Linker.h"
#include "llvm/Support/raw_ostream.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/Transforms/Utils/Cloning.h"

#include <chrono>
#include <cstring>
#include <fmt/format.h>

namespace normforge {

namespace {

constexpr std::pair<EmitStage, std::string_view> kEmitStages[] = {
    {EmitStage::Linalg, "linalg"},  {EmitStage::Scheduled, "scheduled"},
    {EmitStage::Vector, "vector"},  {EmitStage::LlvmMlir, "llvm-mlir"},
    {EmitStage::Llvm, "llvm"},      {EmitStage::Assembly, "asm"},
    {EmitStage::Assembly, "ptx"},   // the assembly of NVIDIA's GPUs
    {EmitStage::Assembly, "cubin"}, // and what their assembler makes of it
};

/// Adds the time since its making to a figure.
class Stopwatch {
public:
  explicit Stopwatch(double &milliseconds)
      : milliseconds_(milliseconds), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    milliseconds_ +=
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
            .count();
  }

private:
  double &milliseconds_;
  std::chrono::steady_clock::time_point start_;
};

mlir::DialectRegistry makeRegistry() {
  mlir::DialectRegistry registry;
  registerLoweringDialects(registry);
  registry.insert<mlir::bufferization::BufferizationDialect, mlir::cf::ControlFlowDialect,
                  mlir::gpu::GPUDialect, mlir::LLVM::LLVMDialect, mlir::memref::MemRefDialect,
                  mlir::scf::SCFDialect, mlir::ub::UBDialect, mlir::vector::VectorDialect>();
  registerLlvmTranslation(registry);
  return registry;
}

} // namespace

std::optional<EmitStage> parseEmitStage(std::string_view text) {
  for (auto [stage, name] : kEmitStages)
    if (name == text)
      return stage;
  return std::nullopt;
}

std::string_view emitStageNames() {
  return "linalg, scheduled, vector, llvm-mlir, llvm, asm, ptx, cubin";
}

namespace {

/// A variant at the stage asked for: text up to the LLVM dialect, then an llvm::Module.
struct Compiled {
  std::string text;
  std::vector<StageInfo> stages;
  std::vector<Launch> launches; ///< of a GPU's stages
  SizeExpr workspaceBytes;
  std::unique_ptr<llvm::Module> module;
};

std::vector<std::string> uselessSets(const Operator &op, const TargetDescription &target) {
  return target.uselessSets(op.hasArrayOf(DType::F16), op.hasArrayOf(DType::BF16));
}

/// How a stage's kernel is launched, by the attributes that nf-bind-kernel leaves.
Launch launchOf(mlir::func::FuncOp kernel) {
  auto integer = [&](const char *name) {
    return static_cast<uint32_t>(kernel->getAttrOfType<mlir::IntegerAttr>(name).getInt());
  };
  Launch launch;
  launch.groups = integer(attr::kGroups);
  launch.threads = integer(attr::kThreads) * integer(attr::kDown) * launch.groups;
  launch.sharedBytes = integer(attr::kShared) * launch.groups;
  for (unsigned i = 0; i < kernel.getNumArguments(); ++i) {
    Parameter parameter; // the number of tasks, where nothing else is said
    const std::pair<const char *, Parameter::Kind> kinds[] = {
        {attr::kArgument, Parameter::Kind::Argument},
        {attr::kSize, Parameter::Kind::Size},
        {attr::kScalar, Parameter::Kind::Scalar}};
    for (auto [name, kind] : kinds)
      if (auto index = kernel.getArgAttrOfType<mlir::IntegerAttr>(i, name))
        parameter = {kind, static_cast<uint32_t>(index.getInt()), SizeExpr()};
    if (auto offset = kernel.getArgAttrOfType<mlir::AffineMapAttr>(i, attr::kWorkspace))
      parameter = {Parameter::Kind::Workspace, 0, sizeOf(offset.getValue().getResult(0))};
    launch.parameters.push_back(std::move(parameter));
  }
  return launch;
}

/// All that a manifest has before the code.
Artifact manifestOf(const Operator &op, const TargetDescription &target,
                    const TargetDescription &code) {
  Artifact artifact;
  artifact.name = op.name;
  artifact.phase = toString(op.phase);
  artifact.entry = code.device ? EntryKind::Launch : EntryKind::Call;
  artifact.triple = code.triple;
  artifact.cpu = target.cpu;
  if (!code.device)
    artifact.requiredFeatures = code.instructionSets();
  const std::vector<std::string> useless = uselessSets(op, code);
  llvm::erase_if(artifact.requiredFeatures,
                 [&](const std::string &name) { return llvm::is_contained(useless, name); });
  artifact.sizes = op.sizes;
  artifact.constraints = op.constraints;
  artifact.scalars = op.scalars;
  artifact.arguments = op.arguments();
  return artifact;
}

/// The same of a variant. Its stages' entries are those of `functions`.
llvm::Expected<Variant> describe(const Operator &op, const ScheduleVariant &variant,
                                 const Compiled &compiled,
                                 const std::map<std::string, uint64_t> &functions) {
  Variant out;
  out.schedule = variant.schedule.text(op);
  out.reason = variant.reason;
  out.guard = variant.guard;
  out.workspaceBytes = compiled.workspaceBytes;
  for (size_t i = 0; i < compiled.stages.size(); ++i) {
    const StageInfo &stage = compiled.stages[i];
    const auto function = functions.find(stage.symbol);
    if (function == functions.end())
      return llvm::make_error<InternalError>("no code for stage " + stage.symbol);
    out.stages.push_back({stage.symbol, function->second, stage.tasks, stage.bytesPerTask,
                          compiled.launches.empty() ? Launch() : compiled.launches[i]});
  }
  return out;
}

template <typename T> std::string printed(T &&value) {
  std::string text;
  llvm::raw_string_ostream stream(text);
  value.print(stream);
  return text;
}

} // namespace

struct Session::State {
  mlir::MLIRContext context;
  llvm::LLVMContext llvmContext;
  std::unique_ptr<llvm::TargetMachine> machine;
  std::optional<ObjectEmitter> objects; ///< of a CPU
  LlvmConversion conversion;
  mlir::PassManager formTasks, vectorize, bind;
  std::string diagnostics;
  const TargetDescription &target, &code; ///< as Session's
  bool verify;

  State(const TargetDescription &target, const TargetDescription &code, bool verify)
      : context(makeRegistry(), mlir::MLIRContext::Threading::DISABLED),
        machine(createMachine(code)),
        conversion((context.loadAllAvailableDialects(), context), code), formTasks(&context),
        vectorize(&context), bind(&context), target(target), code(code), verify(verify) {
    if (!code.device)
      objects.emplace(*machine);
    formTasks.addPass(createFormTasks());
    vectorize.addPass(
        createVectorizeSteps({.subgroup = target.device ? target.device->subgroup : 0}));
    bind.addPass(code.device ? createBindKernel() : createBindCall());
    for (mlir::PassManager *passes : {&formTasks, &vectorize, &bind})
      passes->enableVerifier(verify);
    context.getDiagEngine().registerHandler([this](mlir::Diagnostic &diagnostic) {
      diagnostics += diagnostic.str() + "\n";
      for (mlir::Diagnostic &note : diagnostic.getNotes())
        diagnostics += "  " + note.str() + "\n";
    });
  }

  llvm::Error failure(const char *step) {
    return llvm::make_error<InternalError>(fmt::format("{}: {}", step, diagnostics));
  }

  /// Runs the steps up to `stage`, at most to an optimized llvm::Module.
  llvm::Expected<Compiled> run(const Operator &op, const Schedule &schedule,
                               const std::string &symbol, EmitStage stage, CompileTimes &times);
  /// Compiles a variant; one that is nobody's own, and whose code takes more stack than a kernel
  /// may, with less in flight.
  llvm::Expected<Variant> compileFitting(const Operator &op, ScheduleVariant &variant,
                                         CompileTimes &times);
  /// Compiles a variant of a GPU's, whose code is text.
  llvm::Expected<Variant> compileText(const Operator &op, const ScheduleVariant &variant,
                                      CompileTimes &times);
};

constexpr std::string_view kLessInFlight = "; with less in flight, which the stack holds";

/// A failure that is no fault of the schedule is one of the compiler.
static llvm::Error linkFailure(llvm::Error error) {
  return error.isA<StackError>()
             ? std::move(error)
             : llvm::make_error<InternalError>(llvm::toString(std::move(error)));
}

char InternalError::ID = 0;
void InternalError::log(llvm::raw_ostream &os) const { os << "internal error: " << text_; }

Session::Session(TargetDescription target, bool verify, bool emulates)
    : target_(std::move(target)), code_(target_), verify_(verify) {
  if (target_.device && emulates) {
    if (auto code = emulatingTarget())
      code_ = std::move(*code);
    else
      whyNot_ = llvm::toString(code.takeError());
  }
  state_ = std::make_unique<State>(target_, code_, verify_);
}
Session::~Session() = default;

/// Contexts keep every type and attribute that they have seen: some 10 KB a kernel.
Session::State &Session::state() {
  constexpr int kKernels = 400;
  if (kernels_++ == kKernels) {
    state_.reset();
    state_ = std::make_unique<State>(target_, code_, verify_);
    kernels_ = 1;
  }
  return *state_;
}

llvm::Expected<Compiled> Session::State::run(const Operator &op, const Schedule &schedule,
                                             const std::string &symbol, EmitStage stage,
                                             CompileTimes &times) {
  diagnostics.clear();
  Compiled result;
  LoweredKernel kernel;
  {
    Stopwatch watch(times.lower);
    kernel = lowerToLinalg(context, op, schedule, symbol);
    result.stages = kernel.stages;
    result.workspaceBytes = kernel.workspaceBytes;
    if (verify && mlir::failed(mlir::verify(*kernel.module)))
      return failure("lowering to linalg");
  }
  mlir::ModuleOp module = *kernel.module;
  if (stage == EmitStage::Linalg) {
    result.text = printed(module);
    return result;
  }
  {
    Stopwatch watch(times.passes);
    if (mlir::failed(formTasks.run(module)))
      return failure("nf-form-tasks");
    if (stage == EmitStage::Scheduled) {
      result.text = printed(module);
      return result;
    }
    if (mlir::failed(vectorize.run(module)))
      return failure("nf-vectorize-steps");
  }
  if (stage == EmitStage::Vector) {
    result.text = printed(module);
    return result;
  }
  {
    Stopwatch watch(times.convert);
    if (mlir::failed(bind.run(module)))
      return failure(code.device ? "nf-bind-kernel" : "nf-bind-call");
    if (code.device)
      for (auto kernel : module.getOps<mlir::func::FuncOp>())
        result.launches.push_back(launchOf(kernel));
    if (mlir::failed(conversion.run(module)) || (verify && mlir::failed(mlir::verify(module))))
      return failure("conversion to LLVM");
  }
  if (stage == EmitStage::LlvmMlir) {
    result.text = printed(module);
    return result;
  }
  std::unique_ptr<llvm::Module> llvmModule;
  {
    Stopwatch watch(times.translate);
    llvmModule = translate(module, llvmContext, code, *machine, uselessSets(op, code));
    if (!llvmModule)
      return failure("translation to LLVM IR");
  }
  {
    Stopwatch watch(times.optimize);
    optimize(*llvmModule, *machine);
    std::string text;
    llvm::raw_string_ostream stream(text);
    if (verify && llvm::verifyModule(*llvmModule, &stream))
      return llvm::make_error<InternalError>("LLVM IR: " + text);
  }
  result.module = std::move(llvmModule);
  return result;
}

llvm::Expected<std::vector<std::string>>
Session::emit(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants, EmitStage stage) {
  State &current = state();
  std::vector<std::string> texts;
  CompileTimes times;
  for (const ScheduleVariant &variant : variants) {
    auto compiled = current.run(op, variant.schedule, op.symbol, stage, times);
    if (!compiled)
      return compiled.takeError();
    if (stage == EmitStage::Llvm) {
      llvm::raw_string_ostream stream(compiled->text);
      compiled->module->print(stream, nullptr);
    } else if (stage == EmitStage::Assembly) {
      compiled->text = emitAssembly(*compiled->module, *current.machine);
    }
    texts.push_back(std::move(compiled->text));
  }
  return texts;
}

llvm::Expected<Artifact> Session::compile(const Spec &spec, Phase phase, CompileTimes *times) {
  const Operator op = makeOperator(spec, phase);
  auto variants = chooseSchedules(op, target_);
  if (!variants)
    return variants.takeError();
  return compile(op, *variants, times);
}

llvm::Expected<Artifact> Session::compile(const Operator &op,
                                          llvm::ArrayRef<ScheduleVariant> variants,
                                          CompileTimes *times) {
  if (!whyNot_.empty())
    return llvm::createStringError(whyNot_);
  Artifact artifact = manifestOf(op, target_, code_);
  State &current = state();
  CompileTimes ignored;
  CompileTimes &spent = times ? *times : ignored;
  auto add = [&](ScheduleVariant variant) -> llvm::Error {
    auto out = code_.device ? current.compileText(op, variant, spent)
                            : current.compileFitting(op, variant, spent);
    if (!out)
      return out.takeError();
    artifact.variants.push_back(std::move(*out));
    return llvm::Error::success();
  };
  for (const ScheduleVariant &variant : variants)
    if (llvm::Error error = add(variant))
      return error;
  // Pointers need no alignment but their elements' by contract: the last one is for those.
  if (artifact.variants.back().alignment > 0)
    if (llvm::Error error = add(withScalarLanes(variants.back(), op)))
      return error;
  return artifact;
}

llvm::Expected<Variant> Session::State::compileText(const Operator &op,
                                                    const ScheduleVariant &variant,
                                                    CompileTimes &times) {
  auto compiled = run(op, variant.schedule, op.symbol, EmitStage::Assembly, times);
  if (!compiled)
    return compiled.takeError();
  std::map<std::string, uint64_t> functions;
  for (const StageInfo &stage : compiled->stages)
    functions.emplace(stage.symbol, 0);
  auto out = describe(op, variant, *compiled, functions);
  if (!out)
    return out;
  const bool hasVectors = llvm::any_of(
      variant.schedule.stages, [](const StagePlan &stage) { return stage.vector > stage.threads; });
  out->alignment = hasVectors ? static_cast<uint32_t>(code.device->accessBytes) : 0;
  Stopwatch watch(times.codegen);
  const std::string text = emitAssembly(*compiled->module, *machine);
  out->image.bytes.resize(text.size() + 1); // and a zero
  std::memcpy(out->image.bytes.data(), text.c_str(), text.size() + 1);
  return out;
}

llvm::Expected<Variant> Session::State::compileFitting(const Operator &op, ScheduleVariant &variant,
                                                       CompileTimes &times) {
  while (true) {
    auto compiled = run(op, variant.schedule, op.symbol, EmitStage::Assembly, times);
    if (!compiled)
      return compiled.takeError();
    llvm::SmallVector<char, 0> object;
    {
      Stopwatch watch(times.codegen);
      object = objects->emit(*compiled->module);
    }
    Stopwatch watch(times.image);
    auto linked = linkImage(object);
    if (linked) {
      auto out = describe(op, variant, *compiled, linked->functions);
      if (out)
        out->image = std::move(linked->image);
      return out;
    }
    llvm::Error error = linked.takeError();
    const std::optional<Schedule> less = error.isA<StackError>() && !variant.isGiven
                                             ? withLessInFlight(variant.schedule, op, target)
                                             : std::nullopt;
    if (!less)
      return linkFailure(std::move(error));
    llvm::consumeError(std::move(error));
    variant.schedule = *less;
    if (!variant.reason.ends_with(kLessInFlight))
      variant.reason += kLessInFlight;
  }
}

llvm::Expected<KernelObject> Session::compileObject(llvm::ArrayRef<ObjectKernel> kernels,
                                                    bool withAssembly, bool isFitting) {
  if (!whyNot_.empty())
    return llvm::createStringError(whyNot_);
  if (code_.device)
    return llvm::createStringError(fmt::format(
        "{} is a GPU, whose kernels are no object files; expected ptx, or a pack", code_.cpu));
  State &current = state();
  CompileTimes times;
  std::vector<std::vector<Compiled>> compiled;
  std::unique_ptr<llvm::Module> all;
  for (const ObjectKernel &kernel : kernels) {
    auto &variants = compiled.emplace_back();
    for (size_t i = 0; i < kernel.variants.size(); ++i) {
      const std::string symbol =
          kernel.variants.size() == 1 ? kernel.symbol : fmt::format("{}_v{}", kernel.symbol, i + 1);
      auto one =
          current.run(kernel.op, kernel.variants[i].schedule, symbol, EmitStage::Assembly, times);
      if (!one)
        return one.takeError();
      variants.push_back(std::move(*one));
      std::unique_ptr<llvm::Module> module = std::move(variants.back().module);
      if (!all)
        all = std::move(module);
      else if (llvm::Linker::linkModules(*all, std::move(module)))
        return llvm::make_error<InternalError>("modules of variants cannot be joined");
    }
  }
  noteProtection(*all);
  KernelObject result;
  if (withAssembly) // of a copy: code generation changes what it is given
    result.assembly = emitAssembly(*llvm::CloneModule(*all), *current.machine);
  const llvm::SmallVector<char, 0> object = ObjectEmitter(*current.machine).emit(*all);
  result.object.assign(object.begin(), object.end());
  auto linked = linkImage(object);
  if (!linked) {
    llvm::Error error = linked.takeError();
    if (!error.isA<StackError>() || isFitting)
      return linkFailure(std::move(error));
    llvm::consumeError(std::move(error));
    // Which of the variants they are is told by each alone.
    std::vector<ObjectKernel> fitting(kernels.begin(), kernels.end());
    for (ObjectKernel &kernel : fitting)
      for (ScheduleVariant &variant : kernel.variants)
        if (auto fits = current.compileFitting(kernel.op, variant, times); !fits)
          return fits.takeError();
    return compileObject(fitting, withAssembly, /*isFitting=*/true);
  }
  for (size_t k = 0; k < kernels.size(); ++k) {
    Artifact &artifact = result.kernels.emplace_back(manifestOf(kernels[k].op, target_, code_));
    for (size_t v = 0; v < compiled[k].size(); ++v) {
      auto out = describe(kernels[k].op, kernels[k].variants[v], compiled[k][v], linked->functions);
      if (!out)
        return out.takeError();
      artifact.variants.push_back(std::move(*out));
    }
  }
  return result;
}

} // namespace normforge
