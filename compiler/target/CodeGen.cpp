#include "compiler/target/CodeGen.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/CodeGen/CommandFlags.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Object/ELFObjectFile.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/raw_ostream.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/TargetParser/Triple.h"

#include <fmt/format.h>

namespace normforge {

using namespace llvm;

std::unique_ptr<TargetMachine> createMachine(const TargetDescription &target) {
  std::string error;
  const Triple triple(target.triple);
  const Target *found = TargetRegistry::lookupTarget(triple, error);
  if (!found)
    return nullptr;
  std::string features;
  for (const std::string &feature : target.features)
    features += (features.empty() ? "+" : ",+") + feature;
  TargetOptions options;
  // A trapping integer or contracted operation is never ours to make: FMAs are explicit.
  options.AllowFPOpFusion = FPOpFusion::Strict;
  return std::unique_ptr<TargetMachine>(
      found->createTargetMachine(triple, target.cpu, features, options, Reloc::PIC_,
                                 CodeModel::Small, CodeGenOptLevel::Default));
}

namespace {

template <typename Stream>
void emit(Module &module, TargetMachine &machine, Stream &stream, CodeGenFileType type) {
  legacy::PassManager passes;
  machine.addPassesToEmitFile(passes, stream, nullptr, type, /*DisableVerify=*/true);
  passes.run(module);
}

template <typename... Args> Error imageError(fmt::format_string<Args...> format, Args &&...args) {
  return createStringError("internal error: the generated code is not self-contained: " +
                           fmt::format(format, std::forward<Args>(args)...));
}

} // namespace

SmallVector<char, 0> emitObject(Module &module, TargetMachine &machine) {
  SmallVector<char, 0> bytes;
  raw_svector_ostream stream(bytes);
  emit(module, machine, stream, CodeGenFileType::ObjectFile);
  return bytes;
}

std::string emitAssembly(Module &module, TargetMachine &machine) {
  SmallVector<char, 0> bytes;
  raw_svector_ostream stream(bytes);
  emit(module, machine, stream, CodeGenFileType::AssemblyFile);
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
      if (name->starts_with(".eh_frame"))
        continue;
      if (section.sh_flags & (elf::SHF_WRITE | elf::SHF_TLS) || section.sh_type != elf::SHT_PROGBITS)
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
        linked.functions[name->str()] = placed[symbol.st_shndx] + symbol.st_value;
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
      if (type != elf::R_X86_64_PC32 && type != elf::R_X86_64_PLT32)
        return imageError("relocation of type {}", type);
      const uint64_t at = placed[section.sh_info] + relocation.r_offset;
      const uint64_t target = placed[(*symbol)->st_shndx] + (*symbol)->st_value;
      const auto value =
          static_cast<int32_t>(target + static_cast<uint64_t>(relocation.r_addend) - at);
      if (at + sizeof(value) > bytes.size())
        return imageError("relocation outside of its section");
      std::memcpy(bytes.data() + at, &value, sizeof(value));
    }
  }
  return linked;
}

} // namespace normforge
