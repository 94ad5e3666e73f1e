#include "python/src/Kernel.h"

#include <algorithm>

namespace normforge::python {

namespace {

/// Shapes that a kernel keeps plans of, at most.
constexpr size_t kMostPlans = 256;
/// A call that moves less keeps the GIL: giving it back takes as long as the kernel.
constexpr uint64_t kSmallBytes = 16 << 10;

nb::object interned(const std::string &text) {
  return nb::steal(PyUnicode_InternFromString(text.c_str()));
}

nb::object arraysModule() { return nb::module_::import_("normforge._arrays"); }

/// "x, gamma and beta".
std::string list(const std::vector<std::string> &names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i)
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  return text;
}

PyObject *find(const nb::handle &mapping, const nb::object &name) {
  PyObject *found = PyDict_GetItemWithError(mapping.ptr(), name.ptr());
  if (!found && PyErr_Occurred())
    throw nb::python_error();
  return found;
}

} // namespace

Kernel::Kernel(nf::Kernel kernel, std::shared_ptr<const void> threads, bool copies)
    : threads_(std::move(threads)), kernel_(std::move(kernel)), copies_(copies),
      out_(interned("out")) {
  for (size_t i = 0; i < kernel_.argumentCount(); ++i) {
    const std::string name(kernel_.argumentName(i));
    arguments_.push_back({interned(name), name, kernel_.argumentDType(i), kernel_.isWritten(i)});
    (kernel_.isWritten(i) ? writes_ : reads_).push_back(name);
  }
  readCount_ = reads_.size();
  takesOut_ = std::ranges::find(reads_, "out") != reads_.end();
  for (size_t i = 0; i < kernel_.scalarCount(); ++i)
    scalars_.push_back(interned(std::string(kernel_.scalarName(i))));
  if (writes_.size() > 1) {
    nb::list names;
    for (const std::string &name : writes_)
      names.append(name);
    results_ = arraysModule().attr("results_class")(names);
  }
}

std::string Kernel::takes() const {
  std::vector<std::string> all = reads_;
  for (const nb::object &scalar : scalars_)
    all.push_back(nb::cast<std::string>(scalar));
  return list(all);
}

/// What is wrong with the names of a call.
void Kernel::failNames(const nb::dict &given, const nb::object &out) const {
  std::vector<std::string> needed = reads_, missing;
  for (const nb::object &scalar : scalars_)
    needed.push_back(nb::cast<std::string>(scalar));
  for (const std::string &name : needed)
    if (!find(given, nb::str(name.c_str())))
      missing.push_back(name);
  nb::list known;
  for (const std::string &name : needed)
    known.append(name);
  std::string message;
  auto isKnown = [](const std::vector<std::string> &names, nb::handle name) {
    return std::ranges::find(names, nb::cast<std::string>(nb::str(name))) != names.end();
  };
  nb::dict unknown; // our names of them, or ""
  for (auto [name, value] : given)
    if (!isKnown(needed, name) && !(name.equal(out_) && out.is_valid()))
      unknown[name] = std::string(kernel_.ownName(nb::cast<std::string>(name)));
  if (unknown.size() > 0)
    message = nb::cast<std::string>(arraysModule().attr("unknown_names")(unknown, known));
  if (message.empty() && missing.empty() && out.is_valid())
    for (nb::handle name : out)
      if (!isKnown(writes_, name))
        message =
            "out has no '" + nb::cast<std::string>(nb::str(name)) + "'; it writes " + list(writes_);
  if (message.empty())
    message = "takes " + list(needed) + "; " + list(missing) +
              (missing.size() == 1 ? " is missing" : " are missing");
  throw nb::type_error(message.c_str());
}

nb::object Kernel::dense(nb::handle array) const { return arraysModule().attr("dense")(array); }

std::shared_ptr<Kernel::Prepared> Kernel::prepare(const std::vector<Array> &arrays) {
  Shapes shapes;
  shapes.reserve(last_.size());
  for (size_t i = 0; i < readCount_; ++i) {
    const auto shape = arrays[i].shape();
    shapes.push_back(static_cast<int64_t>(shape.size()));
    shapes.insert(shapes.end(), shape.begin(), shape.end());
  }
  if (lastPrepared_ && shapes == last_)
    return lastPrepared_;
  auto found = prepared_.find(shapes);
  if (found == prepared_.end()) {
    std::vector<std::optional<std::span<const int64_t>>> known(arguments_.size());
    for (size_t i = 0; i < readCount_; ++i)
      if (arguments_[i].dtype != NF_BIT) // which is bytes here
        known[i] = arrays[i].shape();
    Prepared made{.plan = kernel_.plan(kernel_.matchSizes(known))};
    uint64_t bytes = 0;
    for (size_t i = 0; i < arguments_.size(); ++i)
      bytes += made.plan.bytes(i);
    made.isSmall = bytes < kSmallBytes;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const bool isBits = arguments_[i].dtype == NF_BIT;
      if (isBits && i < readCount_ && arrays[i].bytes() != made.plan.bytes(i))
        throw nb::value_error(("'" + arguments_[i].text + "' has " +
                               std::to_string(arrays[i].bytes()) + " bytes; expected " +
                               std::to_string(made.plan.bytes(i)))
                                  .c_str());
      nb::list shape;
      if (isBits)
        shape.append(made.plan.bytes(i));
      else
        for (const int64_t size : made.plan.shape(i))
          shape.append(size);
      made.shapes.push_back(nb::tuple(shape));
    }
    if (prepared_.size() >= kMostPlans)
      prepared_.clear(); // a host whose shapes never repeat
    found = prepared_.emplace(shapes, std::make_shared<Prepared>(std::move(made))).first;
  }
  lastPrepared_ = found->second;
  last_ = std::move(shapes);
  return lastPrepared_;
}

void Kernel::compute(std::vector<nb::object> &objects, const std::vector<double> &numbers) {
  std::vector<Array> arrays;
  arrays.reserve(arguments_.size());
  auto take = [&](size_t i) {
    const Argument &argument = arguments_[i];
    Array array(objects[i], argument.text.c_str(), argument.dtype, argument.isWritten);
    if (!array.isDense()) {
      if (!copies_ || argument.isWritten)
        array.failStrides(argument.text.c_str());
      objects[i] = dense(objects[i]);
      array = Array(objects[i], argument.text.c_str(), argument.dtype, false);
    }
    arrays.push_back(std::move(array));
  };
  for (size_t i = 0; i < readCount_; ++i)
    take(i);
  const std::shared_ptr<Prepared> own = prepare(arrays); // whatever others do meanwhile
  Prepared &prepared = *own;
  const nf::Plan &plan = prepared.plan;
  for (size_t i = readCount_; i < arguments_.size(); ++i) {
    if (!objects[i].is_valid()) {
      const nb::handle like = readCount_ ? nb::handle(objects[0]) : nb::none();
      objects[i] = makeArray(like, prepared.shapes[i], arguments_[i].dtype);
      take(i);
      continue;
    }
    take(i);
    const auto shape = plan.shape(i);
    if (arguments_[i].dtype == NF_BIT ? arrays[i].bytes() != plan.bytes(i)
                                      : !std::ranges::equal(arrays[i].shape(), shape)) {
      nb::list found;
      for (const int64_t size : arrays[i].shape())
        found.append(size);
      throw nb::value_error(("out['" + arguments_[i].text + "'] has shape " +
                             nb::cast<std::string>(nb::str(nb::tuple(found))) + "; expected " +
                             nb::cast<std::string>(nb::str(prepared.shapes[i])))
                                .c_str());
    }
  }
  std::vector<void *> pointers;
  pointers.reserve(arrays.size());
  for (const Array &array : arrays)
    pointers.push_back(array.data());

  // A workspace is this call's alone, and stays for the next one.
  nf::Workspace workspace;
  if (plan.workspaceBytes() > 0) {
    if (prepared.workspaces.empty()) {
      workspace = plan.makeWorkspace();
    } else {
      workspace = std::move(prepared.workspaces.back());
      prepared.workspaces.pop_back();
    }
  }
  if (prepared.isSmall) {
    plan.run(pointers, numbers, workspace.get());
  } else {
    const nb::gil_scoped_release released;
    plan.run(pointers, numbers, workspace.get());
  }
  if (workspace.get())
    prepared.workspaces.push_back(std::move(workspace));
}

nb::list Kernel::apply(const nb::list &arrays, const std::vector<double> &numbers, nb::handle out) {
  const size_t given = arrays.size(), written = arguments_.size() - readCount_;
  if (given != readCount_ || numbers.size() != scalars_.size())
    throw nb::type_error(("takes " + list(reads_) + ", " + std::to_string(reads_.size()) +
                          " arrays, and " + std::to_string(scalars_.size()) + " numbers; " +
                          std::to_string(given) + " and " + std::to_string(numbers.size()) +
                          " are given")
                             .c_str());
  if (!out.is_none() && nb::len(out) != written)
    throw nb::type_error(
        ("out has " + std::to_string(nb::len(out)) + " arrays; it writes " + list(writes_))
            .c_str());
  std::vector<nb::object> objects(arguments_.size());
  for (size_t i = 0; i < readCount_; ++i)
    objects[i] = nb::borrow(arrays[i]);
  for (size_t i = 0; !out.is_none() && i < written; ++i)
    if (nb::object array = out[i]; !array.is_none())
      objects[readCount_ + i] = std::move(array);
  compute(objects, numbers);
  nb::list all;
  for (size_t i = readCount_; i < objects.size(); ++i)
    all.append(objects[i]);
  return all;
}

void Kernel::checkArrays(const std::vector<std::vector<int64_t>> &shapes,
                         const std::vector<std::string> &dtypes) const {
  if (shapes.size() != readCount_ || dtypes.size() != readCount_)
    throw nb::type_error(("takes " + list(reads_)).c_str());
  std::vector<std::optional<std::span<const int64_t>>> known(arguments_.size());
  for (size_t i = 0; i < readCount_; ++i) {
    const Argument &argument = arguments_[i];
    if (dtypes[i] != nameOf(argument.dtype))
      throw nb::type_error(
          ("'" + argument.text + "' is " + dtypes[i] + "; expected " + nameOf(argument.dtype))
              .c_str());
    if (argument.dtype != NF_BIT) // which is bytes here
      known[i] = shapes[i];
  }
  const nf::Plan plan = kernel_.plan(kernel_.matchSizes(known));
  for (size_t i = 0; i < readCount_; ++i)
    if (arguments_[i].dtype == NF_BIT &&
        (shapes[i].size() != 1 || static_cast<uint64_t>(shapes[i][0]) != plan.bytes(i)))
      throw nb::value_error(
          ("'" + arguments_[i].text + "' has another size than its spec says").c_str());
}

nb::object Kernel::call(const nb::dict &given) {
  nb::object out;
  size_t ignored = 0;
  if (PyObject *mapping = find(given, out_); mapping && !takesOut_) {
    if (PyDict_Check(mapping))
      out = nb::borrow(mapping);
    else if (mapping == Py_None)
      ignored = 1;
    else
      throw nb::type_error(("out is " +
                            nb::cast<std::string>(nb::handle(mapping).type().attr("__name__")) +
                            "; expected a dict of arrays by their names, of " + list(writes_))
                               .c_str());
  }
  std::vector<nb::object> objects(arguments_.size());
  size_t named = readCount_ + scalars_.size() + out.is_valid() + ignored;
  for (size_t i = 0; i < readCount_; ++i) {
    PyObject *object = find(given, arguments_[i].name);
    if (!object)
      failNames(given, out);
    objects[i] = nb::borrow(object);
  }
  std::vector<double> numbers;
  for (const nb::object &name : scalars_) {
    PyObject *object = find(given, name);
    if (!object)
      failNames(given, out);
    numbers.push_back(PyFloat_AsDouble(object));
    if (PyErr_Occurred()) {
      PyErr_Clear();
      throw nb::type_error(("'" + nb::cast<std::string>(name) + "' is " +
                            nb::cast<std::string>(nb::handle(object).type().attr("__name__")) +
                            "; expected a number")
                               .c_str());
    }
  }
  size_t givenOutputs = 0;
  for (size_t i = readCount_; out.is_valid() && i < arguments_.size(); ++i)
    if (PyObject *object = find(out, arguments_[i].name)) {
      objects[i] = nb::borrow(object);
      ++givenOutputs;
    }
  if (given.size() != named || (out.is_valid() && nb::len(out) != givenOutputs))
    failNames(given, out);

  compute(objects, numbers);
  if (!results_.is_valid())
    return objects.back();
  nb::list all;
  for (size_t i = readCount_; i < objects.size(); ++i)
    all.append(objects[i]);
  return results_(*nb::tuple(all));
}

} // namespace normforge::python
