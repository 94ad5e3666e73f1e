// Python's module normforge._core: engines, kernels, packs and threads of normforge.h.
#include "python/src/Jax.h"
#include "python/src/Kernel.h"
#include "python/src/OpenMp.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;
using namespace nb::literals;

namespace normforge::python {

namespace {

/// Raises an error of the library as the class that normforge._errors has for its code.
[[noreturn]] void raise(const nf::Error &error) {
  const nb::object type =
      nb::module_::import_("normforge._errors").attr("class_of")(static_cast<int>(error.code()));
  std::string message = error.what();
  if (error.code() == NF_NO_COMPILER)
    message += "\nThe package normforge-compiler has one: pip install normforge-compiler.";
  PyErr_SetString(type.ptr(), message.c_str());
  throw nb::python_error();
}

template <typename Body> auto guarded(Body body) {
  try {
    return body();
  } catch (const nf::Error &error) {
    raise(error);
  }
}

nf_phase phaseOf(const std::string &name) {
  const nf_phase phase = nf_phase_named(name.c_str());
  if (phase == NF_OTHER_PHASE)
    throw nb::value_error(("there is no phase '" + name + "'").c_str());
  return phase;
}

class Engine {
public:
  Engine(const std::string &compilerLibrary, const std::optional<std::string> &cacheDirectory,
         uint32_t threads, bool compileInChild, const std::string &tunedRecords,
         const std::string &openMp)
      : threads_(openMp.empty() ? guarded([&] { return std::make_shared<nf::Threads>(threads); })
                                : nullptr),
        openMp_(openMp.empty() ? nullptr : std::make_shared<OpenMp>(openMp)), engine_(guarded([&] {
          nf::Engine::Options options;
          options.compilerLibrary = compilerLibrary;
          options.cacheDirectory = cacheDirectory;
          options.executor = openMp_ ? openMp_->executor() : threads_->executor();
          options.compileInChild = compileInChild;
          options.tunedRecords = tunedRecords;
          return nf::Engine(options);
        })) {}

  nf::Kernel compile(const std::string &spec, const std::string &phase, const std::string &cpu,
                     const std::string &source) const {
    return guarded([&] {
      const nb::gil_scoped_release released;
      return engine_.compile(spec, {phase, cpu, source});
    });
  }
  Kernel load(const nb::bytes &artifact, bool copies) const {
    const std::span bytes(static_cast<const std::byte *>(artifact.data()), artifact.size());
    return guarded([&] { return Kernel(engine_.load(bytes), keeper(), copies); });
  }
  uint32_t threads() const {
    return openMp_ ? static_cast<uint32_t>(openMp_->threads()) : threads_->count();
  }
  /// What computes, which kernels keep.
  std::shared_ptr<const void> keeper() const {
    return openMp_ ? std::shared_ptr<const void>(openMp_) : std::shared_ptr<const void>(threads_);
  }
  const nf::Engine &engine() const { return engine_; }

private:
  std::shared_ptr<const nf::Threads> threads_;
  std::shared_ptr<const OpenMp> openMp_;
  nf::Engine engine_;
};

class Pack {
public:
  Pack(const Engine &engine, const std::string &path)
      : threads_(engine.keeper()), pack_(guarded([&] { return engine.engine().openPack(path); })) {}

  std::vector<std::pair<std::string, std::string>> kernels() const {
    std::vector<std::pair<std::string, std::string>> all;
    for (size_t i = 0; i < pack_.size(); ++i)
      all.emplace_back(pack_.name(i), nf_phase_name(pack_.phase(i)));
    return all;
  }
  Kernel load(const std::string &name, const std::string &phase, bool copies) const {
    return guarded([&] { return Kernel(pack_.load(name, phaseOf(phase)), threads_, copies); });
  }

private:
  std::shared_ptr<const void> threads_;
  nf::Pack pack_;
};

/// Kernel.__call__, as Python's own slot: a bound method would have the names in one more mapping.
PyObject *callKernel(PyObject *self, PyObject *positional, PyObject *named) noexcept {
  try {
    auto &kernel = *nb::inst_ptr<Kernel>(self);
    if (!nb::inst_ready(self))
      throw nb::type_error("the kernel was not made");
    if (PyTuple_Size(positional) != 0)
      throw nb::type_error(("arrays are given by their names: " + kernel.takes()).c_str());
    const nb::dict given = named ? nb::borrow<nb::dict>(named) : nb::dict();
    return guarded([&] { return kernel.call(given); }).release().ptr();
  } catch (nb::python_error &error) {
    error.restore();
  } catch (const nb::builtin_exception &error) {
    PyErr_SetString(error.type() == nb::exception_type::value_error ? PyExc_ValueError
                                                                    : PyExc_TypeError,
                    error.what());
  } catch (const std::bad_alloc &) {
    PyErr_NoMemory();
  } catch (const std::exception &error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyType_Slot kernelSlots[] = {{Py_tp_call, reinterpret_cast<void *>(callKernel)}, {0, nullptr}};

nb::list argumentsOf(const Kernel &kernel) {
  const nf::Kernel &of = kernel.kernel();
  nb::list all;
  for (size_t i = 0; i < of.argumentCount(); ++i) {
    nb::dict argument;
    argument["name"] = std::string(of.argumentName(i));
    argument["dtype"] = of.argumentDType(i) == NF_BIT ? "bits" : nameOf(of.argumentDType(i));
    argument["shape"] = std::string(of.argumentShape(i));
    argument["role"] = nf_role_name(of.role(i));
    argument["written"] = of.isWritten(i);
    all.append(argument);
  }
  return all;
}

nb::bytes saved(const Kernel &kernel) {
  const std::vector<std::byte> bytes = guarded([&] { return kernel.kernel().save(); });
  return nb::bytes(bytes.data(), bytes.size());
}

} // namespace

} // namespace normforge::python

NB_MODULE(_core, m) {
  using namespace normforge::python;
  nb::set_leak_warnings(false); // the default engine lives as long as the interpreter
  m.attr("version") = nf_version();
  nb::class_<Engine>(m, "Engine",
                     "Where kernels come from: the compiler, a cache on disk, and threads.")
      .def(nb::init<const std::string &, const std::optional<std::string> &, uint32_t, bool,
                    const std::string &, const std::string &>(),
           "compiler_library"_a = "", "cache_directory"_a = nb::none(), "threads"_a = 0,
           "compile_in_child"_a = false, "tuned_records"_a = "", "openmp"_a = "",
           "compiler_library: path of libnormforge-compiler.so.\n"
           "cache_directory: where compiled kernels are kept; '' is nowhere, None the default.\n"
           "threads: how many compute; 0 is as many as this process may use.\n"
           "compile_in_child: compile in a process of its own.\n"
           "tuned_records: a file of records of `normforge tune`.\n"
           "openmp: path of an OpenMP library that is loaded already, whose threads compute.")
      .def("load", &Engine::load, "artifact"_a, "copies"_a = false,
           "A kernel of what Kernel.save gave, on a machine of the same kind; needs no compiler.")
      .def_prop_ro("threads", &Engine::threads, "How many threads compute.");
  nb::class_<Kernel> kernelClass(
      m, "Kernel", nb::type_slots(kernelSlots),
      "A kernel of one phase.\n\n"
      "Call it with arrays by their names; what it writes goes into `out`, a\n"
      "mapping of names to arrays, or into new arrays of the first array's library.\n"
      "The GIL is released while it computes.");
  kernelClass
      .def(
          "__init__",
          [](Kernel *self, const Engine &engine, const std::string &spec, const std::string &phase,
             const std::string &cpu, const std::string &source, bool copies) {
            new (self) Kernel(engine.compile(spec, phase, cpu, source), engine.keeper(), copies);
          },
          "engine"_a, "spec"_a, "phase"_a = "", "cpu"_a = "", "source"_a = "", "copies"_a = false,
          "Of one phase of a spec, YAML text; '' is the spec's first.")
      .def(
          "apply",
          [](Kernel &kernel, const nb::list &arrays, const std::vector<double> &numbers,
             nb::object out) {
            return guarded([&] { return kernel.apply(arrays, numbers, out); });
          },
          "arrays"_a, "numbers"_a = std::vector<double>(), "out"_a = nb::none(),
          "Of all arrays and numbers in their order: what is written, new or into the arrays of "
          "`out`, a list with None for new ones.")
      .def(
          "check_arrays",
          [](const Kernel &kernel, const std::vector<std::vector<int64_t>> &shapes,
             const std::vector<std::string> &dtypes) {
            guarded([&] { return kernel.checkArrays(shapes, dtypes), 0; });
          },
          "shapes"_a, "dtypes"_a,
          "Raises what a call would where arrays of these shapes and dtypes, in their order, are "
          "not those that it takes.")
      .def_prop_ro("name", [](const Kernel &k) { return std::string(k.kernel().name()); })
      .def_prop_ro("phase", [](const Kernel &k) { return nf_phase_name(k.kernel().phase()); })
      .def_prop_ro(
          "cpu", [](const Kernel &k) { return std::string(k.kernel().cpu()); },
          "The CPU that it was compiled for.")
      .def_prop_ro("reads", &Kernel::reads, "Names of the arrays that a call takes.")
      .def_prop_ro("writes", &Kernel::writes, "Names of the arrays that a call gives.")
      .def_prop_ro("arguments", argumentsOf,
                   "Of each array its name, dtype, shape in memory order, role, and whether it is "
                   "written.")
      .def_prop_ro(
          "scalars",
          [](const Kernel &k) {
            std::vector<std::string> names;
            for (size_t i = 0; i < k.kernel().scalarCount(); ++i)
              names.emplace_back(k.kernel().scalarName(i));
            return names;
          },
          "Names of the numbers that a call takes.")
      .def_prop_ro(
          "schedules",
          [](const Kernel &k) {
            std::vector<std::pair<std::string, std::string>> all;
            for (size_t i = 0; i < k.kernel().variantCount(); ++i)
              all.emplace_back(k.kernel().schedule(i), k.kernel().reason(i));
            return all;
          },
          "Of each variant its schedule, and who chose it and why.")
      .def("save", saved, "The kernel as bytes, for Engine.load.");
  nb::class_<Pack>(m, "Pack", "Kernels in a file, compiled ahead of time by `normforge pack`.")
      .def(nb::init<const Engine &, const std::string &>(), "engine"_a, "path"_a)
      .def_prop_ro("kernels", &Pack::kernels, "Names and phases.")
      .def("load", &Pack::load, "name"_a, "phase"_a = "inference", "copies"_a = false);
  declareJax(m);
  // Of a pack that the class above knows by now.
  kernelClass.def(
      "__init__",
      [](Kernel *self, const Pack &pack, const std::string &name, const std::string &phase,
         bool copies) { new (self) Kernel(pack.load(name, phase, copies)); },
      "pack"_a, "name"_a, "phase"_a = "inference", "copies"_a = false,
      "Of one phase of a name in a pack.");
}
