#include "runtime/loader/DebuggerInterface.h"

#include "runtime/fork/ForkGate.h"

#include <cstring>
#include <elf.h>
#include <mutex>
#include <string>
#include <vector>

// Debuggers look for these, by these names and in this form. Protected: another library of the
// process, LLVM's JIT for one, may have them too, and each is a list of its own to a debugger.
extern "C" {
struct jit_code_entry {
  jit_code_entry *next, *previous;
  const char *file;
  uint64_t bytes;
};
struct jit_descriptor {
  uint32_t version, action;
  jit_code_entry *relevant, *first;
};
__attribute__((visibility("protected")))
jit_descriptor __jit_debug_descriptor = {1, 0, nullptr, nullptr};
// A debugger has a breakpoint here; the call must stay.
__attribute__((visibility("protected"), noinline)) void __jit_debug_register_code() {
  __asm__ volatile("" ::: "memory");
}
}

namespace normforge {
namespace {

enum Action : uint32_t { None, Register, Unregister };

std::mutex &lock() {
  static std::mutex mutex;
  return mutex;
}

#if defined(__aarch64__)
constexpr uint16_t machine = EM_AARCH64;
#else
constexpr uint16_t machine = EM_X86_64;
#endif

/// An ELF file of one section of code, which lies elsewhere, and the symbols in it.
std::vector<char> describe(const LoadedImage &loaded, const Image &image,
                           std::span<const Stage> stages) {
  enum Section : uint16_t { Null, Text, Symbols, Strings, SectionNames, Sections };
  const char sectionNames[] = "\0.text\0.symtab\0.strtab\0.shstrtab";
  std::string strings(1, '\0');
  std::vector<Elf64_Sym> symbols(1);
  for (const Stage &stage : stages) {
    uint64_t end = image.bytes.size();
    for (const Stage &other : stages)
      if (other.entry > stage.entry && other.entry < end)
        end = other.entry;
    Elf64_Sym symbol = {};
    symbol.st_name = static_cast<Elf64_Word>(strings.size());
    symbol.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC);
    symbol.st_shndx = Text;
    symbol.st_value = stage.entry;
    symbol.st_size = end - stage.entry;
    symbols.push_back(symbol);
    strings += stage.symbol + '\0';
  }

  std::vector<char> file(sizeof(Elf64_Ehdr) + Sections * sizeof(Elf64_Shdr));
  Elf64_Shdr headers[Sections] = {};
  auto append = [&](Section section, uint32_t name, uint32_t type, const void *data, size_t bytes) {
    file.resize((file.size() + 7) / 8 * 8);
    headers[section].sh_name = name;
    headers[section].sh_type = type;
    headers[section].sh_offset = file.size();
    headers[section].sh_size = bytes;
    headers[section].sh_addralign = 8;
    const auto *first = static_cast<const char *>(data);
    file.insert(file.end(), first, first + bytes);
  };
  headers[Text].sh_name = 1;
  headers[Text].sh_type = SHT_NOBITS;
  headers[Text].sh_flags = SHF_ALLOC | SHF_EXECINSTR;
  headers[Text].sh_addr = reinterpret_cast<uint64_t>(loaded.base());
  headers[Text].sh_size = image.bytes.size();
  headers[Text].sh_addralign = 16;
  append(Symbols, 7, SHT_SYMTAB, symbols.data(), symbols.size() * sizeof(Elf64_Sym));
  headers[Symbols].sh_link = Strings;
  headers[Symbols].sh_info = 1; // the first that is not local
  headers[Symbols].sh_entsize = sizeof(Elf64_Sym);
  append(Strings, 15, SHT_STRTAB, strings.data(), strings.size());
  append(SectionNames, 23, SHT_STRTAB, sectionNames, sizeof sectionNames);

  Elf64_Ehdr header = {};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_REL; // debuggers add the section's address to its symbols
  header.e_machine = machine;
  header.e_version = EV_CURRENT;
  header.e_shoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = Sections;
  header.e_shstrndx = SectionNames;
  std::memcpy(file.data(), &header, sizeof header);
  std::memcpy(file.data() + sizeof header, headers, sizeof headers);
  return file;
}

void tell(Action action, jit_code_entry &entry) {
  __jit_debug_descriptor.action = action;
  __jit_debug_descriptor.relevant = &entry;
  __jit_debug_register_code();
  __jit_debug_descriptor.action = None;
}

} // namespace

struct DebuggerEntry::State {
  std::vector<char> file;
  jit_code_entry entry = {};
};

DebuggerEntry::DebuggerEntry(const LoadedImage &loaded, const Image &image,
                             std::span<const Stage> stages)
    : state_(std::make_unique<State>()) {
  state_->file = describe(loaded, image, stages);
  jit_code_entry &entry = state_->entry;
  entry.file = state_->file.data();
  entry.bytes = state_->file.size();
  const ForkGate gate; // of the lock
  std::lock_guard guard(lock());
  entry.next = __jit_debug_descriptor.first;
  if (entry.next)
    entry.next->previous = &entry;
  __jit_debug_descriptor.first = &entry;
  tell(Register, entry);
}

DebuggerEntry::~DebuggerEntry() {
  jit_code_entry &entry = state_->entry;
  const ForkGate gate; // of the lock
  std::lock_guard guard(lock());
  (entry.previous ? entry.previous->next : __jit_debug_descriptor.first) = entry.next;
  if (entry.next)
    entry.next->previous = entry.previous;
  tell(Unregister, entry);
}

} // namespace normforge
