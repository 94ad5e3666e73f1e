#include "tests/device/Launch.h"

#include <algorithm>

namespace normforge::test {

oracle::Arrays launch(const Spec &spec, Phase phase, const std::string &cpu,
                      const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                      const oracle::Numbers &scalars, size_t shift, bool inPlace,
                      const std::function<void(Artifact &)> &change, Traffic *traffic) {
  auto orThrow = [](auto made, const Failure &failure) {
    if (!made)
      throw std::runtime_error(failure.message);
    return made;
  };
  auto target = describeTarget(cpu);
  Session session(std::move(*target), /*verify=*/true);
  auto artifact = session.compile(spec, phase);
  if (!artifact)
    throw std::runtime_error(llvm::toString(artifact.takeError()));
  if (change)
    change(*artifact);
  Failure failure;
  std::string error; // as a cache or pack would give it
  auto read = deserialize(serialize(*artifact), error);
  if (!read)
    throw std::runtime_error(error);
  const auto kernel = orThrow(Kernel::load(std::move(*read), {}, failure), failure);
  const auto device = orThrow(openCuda(nullptr, failure), failure);
  if (!kernel->deviceCode()->prepare(device, kernel->artifact(), failure))
    throw std::runtime_error(failure.message);
  std::vector<int64_t> values;
  for (const std::string &name : kernel->artifact().sizes)
    values.push_back(sizes.at(name));
  const auto plan = orThrow(Plan::make(kernel, values, failure), failure);

  const std::vector<Argument> &arguments = kernel->artifact().arguments;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  std::vector<void *> pointers;
  std::vector<size_t> bufferOf;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Argument &argument = arguments[i];
    const auto free =
        std::find_if(argument.mayAlias.begin(), argument.mayAlias.end(), [&](uint32_t alias) {
          return std::count(bufferOf.begin(), bufferOf.end(), bufferOf[alias]) == 1;
        });
    if (inPlace && free != argument.mayAlias.end()) {
      bufferOf.push_back(bufferOf[*free]);
      pointers.push_back(pointers[*free]);
      continue;
    }
    bufferOf.push_back(buffers.size());
    buffers.push_back(std::make_unique<DeviceBuffer>(
        plan->arrays()[i].bytes, shift ? (shift + i) * byteSize(argument.dtype) : 0));
    pointers.push_back(buffers.back()->data());
    if (!argument.written)
      buffers.back()->write(inputs.at(argument.name).bytes.data(), plan->arrays()[i].bytes);
  }
  DeviceBuffer workspace(plan->workspaceBytes());
  std::vector<nf_scalar> numbers;
  for (const Scalar &scalar : kernel->artifact().scalars)
    numbers.push_back(scalars.at(scalar.name));
  if (!plan->enqueue({pointers, numbers, workspace.data()}, *device, nullptr, failure))
    throw std::runtime_error(failure.message);
  constexpr const char *kTraffic = "nfEmulatedTraffic";
  for (size_t i = 0; traffic && Cuda::driver().has(kTraffic) && i < arguments.size(); ++i) {
    auto &[loaded, stored] = (*traffic)[arguments[i].name];
    Cuda::driver().call(kTraffic,
                        static_cast<DevicePointer>(reinterpret_cast<uintptr_t>(pointers[i])),
                        &loaded, &stored);
  }
  oracle::Arrays outputs;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].written) {
      HostArray output(arguments[i].dtype, plan->arrays()[i].shape);
      buffers[bufferOf[i]]->read(output.bytes.data(), output.bytes.size());
      outputs.emplace(arguments[i].name, std::move(output));
    }
  return outputs;
}

} // namespace normforge::test
