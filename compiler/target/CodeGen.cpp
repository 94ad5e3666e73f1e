#include "compiler/target/CodeGen.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Analysis/TargetTransformInfo.h"
#include "llvm/CodeGen/CodeGenTargetMachineImpl.h"
#include "llvm/CodeGen/MachineModuleInfo.h"
#include "llvm/CodeGen/Passes.h"
#include "llvm/CodeGen/TargetPassConfig.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/InitializePasses.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Object/ELFObjectFile.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/LEB128.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/raw_ostream.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/TargetParser/Triple.h"
#include "llvm/Transforms/Scalar.h"

#include <fmt/format.h>

namespace normforge {

using namespace llvm;

/// The stack that abi.h promises a stage at most.
static constexpr uint64_t kMostStackBytes = 16 * 1024;

char StackError::ID = 0;
void StackError::log(raw_ostream &os) const {
  os << fmt::format("the schedule's code takes {} bytes of stack{}, more than the {} that a kernel "
                    "may; expected a smaller tile, vector or unroll",
                    bytes_, where_, kMostStackBytes);
}

std::unique_ptr<TargetMachine> createMachine(const TargetDescription &target) {
  std::string error;
  const Triple triple(target.triple);
  const Target *found = TargetRegistry::lookupTarget(triple, error);
  if (!found)
    return nullptr;
  // The features that the CPU's name stands for are on until they are disabled; that also disables
  // those that build on them, so it comes first.
  SmallVector<std::string> words;
  for (const std::string &feature : target.disabled)
    words.push_back("-" + feature);
  for (const std::string &feature : target.features)
    words.push_back("+" + feature);
  // Return addresses are signed (protectBranches) by hints, which older CPUs pass over, and not by
  // the instructions that a CPU's name may promise and a virtual machine on it lack.
  if (triple.isAArch64())
    words.push_back("-pauth");
  const std::string features = join(words, ",");
  TargetOptions options;
  if (target.device) {
    options.AllowFPOpFusion = FPOpFusion::Strict;
    return std::unique_ptr<TargetMachine>(
        found->createTargetMachine(triple, target.cpu, features, options, std::nullopt,
                                   std::nullopt, CodeGenOptLevel::Default));
  }
  // A trapping integer or contracted operation is never ours to make: FMAs are explicit.
  options.AllowFPOpFusion = FPOpFusion::Strict;
  options.EmitStackSizeSection = true; // read by linkImage
  return std::unique_ptr<TargetMachine>(
      found->createTargetMachine(triple, target.cpu, features, options, Reloc::PIC_,
                                 CodeModel::Small, CodeGenOptLevel::Default));
}

void protectBranches(Module &module) {
  if (module.getTargetTriple().isX86()) {
    module.addModuleFlag(Module::Min, "cf-protection-branch", 1);
    module.addModuleFlag(Module::Min, "cf-protection-return", 1);
    return;
  }
  for (Function &function : module) {
    if (function.isDeclaration())
      continue;
    function.addFnAttr("branch-target-enforcement");
    function.addFnAttr("sign-return-address", "non-leaf");
    function.addFnAttr("sign-return-address-key", "a_key");
  }
}

void noteProtection(Module &module) {
  if (module.getTargetTriple().isX86())
    return; // protectBranches' flags say so too
  for (StringRef flag : {"branch-target-enforcement", "sign-return-address"})
    module.addModuleFlag(Module::Min, flag, uint32_t(1));
  for (StringRef flag : {"sign-return-address-all", "sign-return-address-with-bkey"})
    module.addModuleFlag(Module::Min, flag, uint32_t(0));
}

namespace {

/// Before the first function, so that a stage never is at the beginning of a page: Clang's
/// -fsanitize=function reads the 8 bytes before a function that a host calls. As large as a cache
/// line, so that functions stay aligned as they are.
constexpr size_t kBytesBeforeCode = 64;

/// Names the protected step of TargetPassConfig that selects instructions.
struct CoreISelPasses : TargetPassConfig {
  using TargetPassConfig::addCoreISelPasses;
};

/// The code generation pipeline without what a kernel has no use for: loop strength reduction and
/// the induction variable analysis behind it are a third of the time and bring nothing (the passes
/// have formed the addresses), exceptions and garbage collection there are none.
void addPasses(legacy::PassManager &passes, TargetMachine &machine, raw_pwrite_stream &stream,
               CodeGenFileType type) {
  auto &target = static_cast<CodeGenTargetMachineImpl &>(machine);
  auto *info = new MachineModuleInfoWrapperPass(&target);
  TargetPassConfig *config = target.createPassConfig(passes);
  config->setDisableVerify(true);
  passes.add(config);
  passes.add(info);
  passes.add(createTargetTransformInfoWrapperPass(target.getTargetIRAnalysis()));
  passes.add(createUnreachableBlockEliminationPass());
  passes.add(createScalarizeMaskedMemIntrinLegacyPass()); // AVX2 has no scatter
  config->addCodeGenPrepare();
  config->addISelPrepare();
  (config->*&CoreISelPasses::addCoreISelPasses)();
  config->addMachinePasses();
  config->setInitialized();
  target.addAsmPrinter(passes, stream, nullptr, type, info->getMMI().getContext());
  passes.add(createFreeMachineFunctionPass());
}

template <typename... Args> Error imageError(fmt::format_string<Args...> format, Args &&...args) {
  return createStringError("the generated code is not self-contained: " +
                           fmt::format(format, std::forward<Args>(args)...));
}

/// Bytes of stack that a function of aarch64 takes in scalable vectors of the longest kind:
/// `addvl sp, sp, #-n`, which .stack_sizes leaves out.
uint64_t scalableStackBytes(ArrayRef<uint8_t> text) {
  constexpr uint64_t kLongestVectorBytes = 256;
  uint64_t vectors = 0;
  for (size_t at = 0; at + 4 <= text.size(); at += 4) {
    const uint32_t word = support::endian::read32le(text.data() + at);
    if ((word & 0xFFFFF81F) == 0x047F501F && SignExtend64<6>(word >> 5) < 0)
      vectors += static_cast<uint64_t>(-SignExtend64<6>(word >> 5));
  }
  return vectors * kLongestVectorBytes;
}

/// Checks a .stack_sizes section: for each function its address and, as ULEB128, its bytes of
/// stack. `largest` becomes the most of them.
Error checkStackSizes(ArrayRef<uint8_t> section, uint64_t &largest) {
  const uint8_t *at = section.begin(), *end = section.end();
  while (end - at > 8) {
    unsigned length = 0;
    const char *malformed = nullptr;
    const uint64_t bytes = decodeULEB128(at + 8, &length, end, &malformed);
    if (malformed)
      return imageError("malformed .stack_sizes");
    if (bytes > kMostStackBytes)
      return make_error<StackError>(bytes, "");
    largest = std::max(largest, bytes);
    at += 8 + length;
  }
  return Error::success();
}

/// Writes the distance, or the part of an address, that a relocation asks for. Offsets count from
/// the image's beginning, which is at the beginning of a page. False for what is not known: an
/// instruction of a kernel refers to its own code and constants alone.
/// (System V ABI for AMD64, 4.4.1; ELF for the Arm 64-bit Architecture, 5.7.)
bool relocate(std::byte *place, uint64_t at, uint64_t target, uint16_t machine, uint32_t type) {
  namespace elf = llvm::ELF;
  uint32_t word;
  std::memcpy(&word, place, sizeof word);
  auto put = [&](uint32_t value) {
    std::memcpy(place, &value, sizeof value);
    return true;
  };
  const auto distance = static_cast<int64_t>(target - at);
  if (machine == elf::EM_X86_64)
    return (type == elf::R_X86_64_PC32 || type == elf::R_X86_64_PLT32) && isInt<32>(distance) &&
           put(static_cast<uint32_t>(distance));
  if (machine != elf::EM_AARCH64)
    return false;
  // The low 12 bits of an address, in units of what is loaded.
  auto low = [&](unsigned shift) {
    return target % (uint64_t(1) << shift) == 0 &&
           put((word & ~(0xFFFu << 10)) | static_cast<uint32_t>((target & 0xFFF) >> shift) << 10);
  };
  switch (type) {
  case elf::R_AARCH64_PREL32:
    return isInt<32>(distance) && put(static_cast<uint32_t>(distance));
  case elf::R_AARCH64_CALL26:
  case elf::R_AARCH64_JUMP26:
    return isShiftedInt<26, 2>(distance) &&
           put((word & 0xFC000000u) | (static_cast<uint32_t>(distance >> 2) & 0x03FFFFFFu));
  case elf::R_AARCH64_ADR_PREL_PG_HI21: {
    const auto pages = static_cast<int64_t>((target >> 12) - (at >> 12));
    return isInt<21>(pages) && put((word & 0x9F00001Fu) | (static_cast<uint32_t>(pages) & 3) << 29 |
                                   (static_cast<uint32_t>(pages >> 2) & 0x7FFFF) << 5);
  }
  case elf::R_AARCH64_ADD_ABS_LO12_NC:
  case elf::R_AARCH64_LDST8_ABS_LO12_NC:
    return low(0);
  case elf::R_AARCH64_LDST16_ABS_LO12_NC:
    return low(1);
  case elf::R_AARCH64_LDST32_ABS_LO12_NC:
    return low(2);
  case elf::R_AARCH64_LDST64_ABS_LO12_NC:
    return low(3);
  case elf::R_AARCH64_LDST128_ABS_LO12_NC:
    return low(4);
  default:
    return false;
  }
}

} // namespace

struct ObjectEmitter::State {
  SmallVector<char, 0> bytes;
  raw_svector_ostream stream{bytes};
  legacy::PassManager passes;
};

ObjectEmitter::ObjectEmitter(TargetMachine &machine) : state_(std::make_unique<State>()) {
  addPasses(state_->passes, machine, state_->stream, CodeGenFileType::ObjectFile);
}
ObjectEmitter::~ObjectEmitter() = default;

SmallVector<char, 0> ObjectEmitter::emit(Module &module) {
  state_->bytes.clear();
  state_->passes.run(module);
  return state_->bytes;
}

std::string emitAssembly(Module &module, TargetMachine &machine) {
  SmallVector<char, 0> bytes;
  raw_svector_ostream stream(bytes);
  legacy::PassManager passes;
  if (machine.getTargetTriple().isNVPTX()) // whose passes are others
    machine.addPassesToEmitFile(passes, stream, nullptr, CodeGenFileType::AssemblyFile,
                                /*DisableVerify=*/true);
  else
    addPasses(passes, machine, stream, CodeGenFileType::AssemblyFile);
  passes.run(module);
  return std::string(bytes.begin(), bytes.end());
}

Expected<LinkedImage> linkImage(ArrayRef<char> object) {
  using ELF = object::ELF64LE;
  namespace elf = llvm::ELF;
  auto file = object::ELFFile<ELF>::create(StringRef(object.data(), object.size()));
  if (!file)
    return file.takeError();
  auto sections = file->sections();
  if (!sections)
    return sections.takeError();

  // Lay out what is loaded: code, then read-only data.
  LinkedImage linked;
  std::vector<std::byte> &bytes = linked.image.bytes;
  bytes.resize(kBytesBeforeCode);
  std::map<size_t, uint64_t> placed; // by section
  auto place = [&](bool code) -> Error {
    for (size_t i = 0; i < sections->size(); ++i) {
      const auto &section = (*sections)[i];
      const bool isCode = section.sh_flags & elf::SHF_EXECINSTR;
      if (!(section.sh_flags & elf::SHF_ALLOC) || isCode != code || section.sh_size == 0)
        continue;
      auto name = file->getSectionName(section);
      if (!name)
        return name.takeError();
      if (name->starts_with(".eh_frame") || *name == ".note.gnu.property")
        continue;
      if (section.sh_flags & (elf::SHF_WRITE | elf::SHF_TLS) ||
          section.sh_type != elf::SHT_PROGBITS)
        return imageError("section {}", name->str());
      auto contents = file->getSectionContents(section);
      if (!contents)
        return contents.takeError();
      const uint64_t align = std::max<uint64_t>(1, section.sh_addralign);
      bytes.resize((bytes.size() + align - 1) / align * align);
      placed[i] = bytes.size();
      const auto *data = reinterpret_cast<const std::byte *>(contents->data());
      bytes.insert(bytes.end(), data, data + contents->size());
    }
    return Error::success();
  };
  if (Error error = place(true))
    return error;
  if (Error error = place(false))
    return error;

  uint64_t fixedStack = 0;
  for (const auto &section : *sections) {
    auto name = file->getSectionName(section);
    if (!name)
      return name.takeError();
    if (*name != ".stack_sizes")
      continue;
    auto contents = file->getSectionContents(section);
    if (!contents)
      return contents.takeError();
    if (Error error = checkStackSizes(*contents, fixedStack))
      return error;
  }

  for (const auto &table : *sections) {
    if (table.sh_type != elf::SHT_SYMTAB)
      continue;
    auto symbols = file->symbols(&table);
    auto names = file->getStringTableForSymtab(table);
    if (!symbols)
      return symbols.takeError();
    if (!names)
      return names.takeError();
    for (const auto &symbol : *symbols)
      if (symbol.getType() == elf::STT_FUNC && placed.count(symbol.st_shndx)) {
        auto name = symbol.getName(*names);
        if (!name)
          return name.takeError();
        const uint64_t begin = placed[symbol.st_shndx] + symbol.st_value;
        linked.functions[name->str()] = begin;
        if (file->getHeader().e_machine != elf::EM_AARCH64)
          continue;
        if (begin + symbol.st_size > bytes.size())
          return imageError("a function outside of its section");
        const ArrayRef<uint8_t> code(reinterpret_cast<const uint8_t *>(bytes.data()) + begin,
                                     symbol.st_size);
        if (const uint64_t stack = fixedStack + scalableStackBytes(code); stack > kMostStackBytes)
          return make_error<StackError>(stack, " in vectors of 2048 bits");
      }
  }

  for (const auto &section : *sections) {
    if (section.sh_type != elf::SHT_RELA || !placed.count(section.sh_info))
      continue;
    auto relocations = file->relas(section);
    auto table = file->getSection(section.sh_link);
    if (!relocations)
      return relocations.takeError();
    if (!table)
      return table.takeError();
    for (const auto &relocation : *relocations) {
      auto symbol = file->getRelocationSymbol(relocation, *table);
      if (!symbol)
        return symbol.takeError();
      const uint32_t type = relocation.getType(false);
      if (!*symbol || !placed.count((*symbol)->st_shndx)) {
        auto names = file->getStringTableForSymtab(**table);
        auto name = names && *symbol ? (*symbol)->getName(*names) : Expected<StringRef>("?");
        return imageError("undefined symbol {}", name ? name->str() : "?");
      }
      const uint64_t at = placed[section.sh_info] + relocation.r_offset;
      const uint64_t target = placed[(*symbol)->st_shndx] + (*symbol)->st_value +
                              static_cast<uint64_t>(relocation.r_addend);
      if (at + sizeof(uint32_t) > bytes.size())
        return imageError("relocation outside of its section");
      if (!relocate(bytes.data() + at, at, target, file->getHeader().e_machine, type))
        return imageError("relocation of type {}", type);
    }
  }
  return linked;
}

} // namespace normforge
